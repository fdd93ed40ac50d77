"""Attention under a layout without a mask: each segment attends to the keys that come before its end."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moteur.masks.layout import Layout
from moteur.masks.rows import answering, concerned_rows, silenced


def structural_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """The same attention as one `scaled_dot_product_attention` per segment, over the keys up to that segment's end.

    In a bidirectional segment all rows see the same keys, so there is nothing to mask, and what is invisible is not
    computed. Three things bring a mask back, for the segment concerned alone:

    - Ragged keys: a (batch, 1, 1, key) mask, if a segment up to this one has an entry in `valid`.
    - A causal segment: none for a single row or for the first segment of the sequence, where the kernel's own causal
      mode applies if no key is ragged; else the segment's rows of the dense mask.
    - Documents: the segment's rows of the dense mask.

    Arguments, result and errors are those of `dense_attention`. Nothing is read back from the device.

    Example:
        >>> from moteur.masks import Segment
        >>> layout = Layout([Segment("prefix", 2), Segment("action", 1)])
        >>> query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
        >>> value = torch.tensor([[[[0.0, 0.0], [2.0, 2.0], [7.0, 7.0]]]])
        >>> structural_attention(query, key, value, layout)[0, 0, :, 0]
        tensor([1., 1., 3.])
        >>> structural_attention(query[:, :, 2:], key, value, layout)[0, 0, :, 0]  # cached: the last position asks
        tensor([3.])
    """
    rows = concerned_rows(query, key, value, layout, queries)
    outputs: list[Tensor] = []
    for segment, span in zip(layout.segments, layout.spans, strict=True):
        own = range(max(span.start, rows.start), min(span.stop, rows.stop))
        if not own:
            continue
        keys = range(own.stop if segment.causal else span.stop)
        asked = query[:, :, own.start - rows.start : own.stop - rows.start]
        answer = _attend(
            asked, key[:, :, : keys.stop], value[:, :, : keys.stop], layout, own, keys, causal=segment.causal
        )
        outputs.append(silenced(answer, layout, own))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _attend(  # noqa: PLR0917  # query, key, value as everywhere, then where they lie
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    rows: range,
    keys: range,
    *,
    causal: bool,
) -> Float[Tensor, "batch heads query head_dim"]:
    """Rows of one segment over its prefix of keys."""
    valid = layout.validity(keys, device=query.device)
    groups = query.shape[1] // key.shape[1]
    triangular = causal and len(rows) > 1
    if triangular and rows.start == 0 and valid is None and layout.documents is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups > 1)
    mask: Bool[Tensor, "batch 1 rows key"] | None = None
    if triangular or layout.documents is not None:
        mask = answering(layout.dense(rows, keys, device=query.device)[:, None])
    elif valid is not None:
        mask = answering(valid[:, None, None, :])
    if groups == 1:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Query heads that share a key head become further rows of it: kernels that take a mask do not group heads.
    folded = rearrange(query, "batch (kv group) row dim -> batch kv (group row) dim", group=groups)
    if mask is not None and mask.shape[2] > 1:
        mask = repeat(mask, "batch one row key -> batch one (group row) key", group=groups)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return rearrange(output, "batch kv (group row) dim -> batch (kv group) row dim", group=groups)
