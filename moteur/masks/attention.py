"""Softmax attention under a layout: with the dense mask, through FlexAttention, or segment by segment."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from moteur.masks.layout import Layout, checked_range


def dense_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    r"""Attention with the dense mask: memory is quadratic in the length, any device and dtype.

    $$o_q = \sum_{k\,\text{visible}} \frac{\exp(x_q \cdot y_k / \sqrt{d})}{\sum_{k'\,\text{visible}}
    \exp(x_q \cdot y_{k'} / \sqrt{d})}\, z_k$$

    with query $x$, key $y$, value $z$ and head size $d$. Query head `h` uses key head `h * kv_heads // heads`.

    Padding must hold finite numbers. They get a weight of exactly zero, but zero times infinity or NaN is NaN: a
    non-finite value of padding (or key, in this function and in `structural_attention`) spoils rows of its own sample.
    Clear such numbers once, before the first layer.

    Args:
        query: Queries of the positions `queries`.
        key: Keys of the positions `[0, key)` of the layout. A prefill has fewer than the layout.
        value: Values of the same positions as `key`.
        layout: Which query attends to which key.
        queries: Positions of the queries. Default: the last of the positions that `key` holds, so that joint training,
            prefill and cached decoding are the same call.

    Returns:
        One vector for each query; exactly zero, with zero gradient, for queries that are padding.

    Raises:
        ValueError: If the shapes of query, key, value and layout do not fit together, the queries are not among the
            keys, or the keys end inside a bidirectional segment that a query attends to.

    Examples:
        >>> import torch
        >>> from moteur.masks import Segment
        >>> layout = Layout([Segment("prefix", 2), Segment("action", 1)])
        >>> query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
        >>> value = torch.tensor([[[[0.0, 0.0], [2.0, 2.0], [7.0, 7.0]]]])
        >>> dense_attention(query, key, value, layout)[0, 0, :, 0]
        tensor([1., 1., 3.])
    """
    rows = _query_positions(query, key, value, layout, queries)
    mask = layout.dense(rows, range(key.shape[2]), device=query.device)[:, None]
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, attn_mask=_unblinded(mask), enable_gqa=grouped)
    return _padding_zeroed(output, layout, rows)


def flex_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
    *,
    block_mask: BlockMask | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention through PyTorch's FlexAttention and the layout's block mask.

    Wrap the code that calls it in `torch.compile`: uncompiled, FlexAttention computes the whole score matrix and warns
    about it. It has no gradient on a CPU.

    Arguments, result and errors are those of `dense_attention`. One `block_mask` serves every layer, if
    `layout.block_mask(queries, range(key_len))` is built before; one of another size, or for another number of samples
    or heads, is a `ValueError`.
    """
    rows = _query_positions(query, key, value, layout, queries)
    if block_mask is None:
        block_mask = layout.block_mask(rows, range(key.shape[2]), device=query.device)
    samples, heads = block_mask.kv_num_blocks.shape[:2]
    if samples not in (1, query.shape[0]) or heads not in (1, query.shape[1]):
        raise ValueError(
            f"block_mask: expected 1 or {query.shape[0]} samples and 1 or {query.shape[1]} heads, "
            f"got {samples} and {heads}"
        )
    grouped = query.shape[1] != key.shape[1]
    output = flex.flex_attention(query, key, value, block_mask=block_mask, enable_gqa=grouped)
    assert isinstance(output, Tensor)  # a tuple comes only on request
    # Every FlexAttention kernel returns zeros for a row without keys, so nothing is zeroed here; and the one for CPUs
    # cannot be compiled with an elementwise operation behind it.
    return output


def structural_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention as one `scaled_dot_product_attention` per segment, over the keys up to the end of that segment.

    All rows of a bidirectional segment see the same keys, so they need no mask, and invisible scores are not computed.
    A segment needs a mask in three cases:

    - Padding: a (batch, 1, 1, key) mask, if a segment up to this one has an entry in `layout.valid`.
    - Causal segment: its rows of the dense mask. No mask for a single row. The first segment of the sequence uses the
      kernel's own causal mode if it has no padding.
    - Documents: its rows of the dense mask.

    Arguments, result and errors are those of `dense_attention`. Nothing is read back from the device.

    Examples:
        >>> from moteur.masks import Segment
        >>> layout = Layout([Segment("prefix", 2), Segment("action", 1)])
        >>> query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
        >>> value = torch.tensor([[[[0.0, 0.0], [2.0, 2.0], [7.0, 7.0]]]])
        >>> structural_attention(query, key, value, layout)[0, 0, :, 0]
        tensor([1., 1., 3.])
        >>> structural_attention(query[:, :, 2:], key, value, layout)[0, 0, :, 0]  # cached: only the last position
        tensor([3.])
    """
    rows = _query_positions(query, key, value, layout, queries)
    outputs: list[Tensor] = []
    for segment, span in zip(layout.segments, layout.spans, strict=True):
        own = range(max(span.start, rows.start), min(span.stop, rows.stop))
        if not own:
            continue
        stop = own.stop if segment.causal else span.stop
        asked = query[:, :, own.start - rows.start : own.stop - rows.start]
        output = _segment_attention(
            asked, key[:, :, :stop], value[:, :, :stop], layout, own, causal=segment.causal and len(own) > 1
        )
        outputs.append(_padding_zeroed(output, layout, own))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _segment_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    rows: range,
    *,
    causal: bool,
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention of positions `rows`, all of one segment, over the keys before its end."""
    keys = range(key.shape[2])
    valid = layout.validity(keys, device=query.device)
    groups = query.shape[1] // key.shape[1]
    if causal and rows.start == 0 and valid is None and layout.documents is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups > 1)
    mask: Bool[Tensor, "batch 1 rows key"] | None = None
    if causal or layout.documents is not None:
        mask = _unblinded(layout.dense(rows, keys, device=query.device)[:, None])
    elif valid is not None:
        mask = _unblinded(valid[:, None, None, :])
    if groups == 1:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Query heads that share a key head become further rows of it: kernels that take a mask do not group heads.
    folded = rearrange(query, "batch (kv group) row dim -> batch kv (group row) dim", group=groups)
    if mask is not None and mask.shape[2] > 1:
        mask = repeat(mask, "batch one row key -> batch one (group row) key", group=groups)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return rearrange(output, "batch kv (group row) dim -> batch (kv group) row dim", group=groups)


def _query_positions(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None,
) -> range:
    """Positions of the queries: `queries`, or the last positions that `key` holds.

    Refuses what the kernels would broadcast or answer with less than the layout says.
    """
    (batch, heads, count, dim), (_, kv_heads, held, _) = query.shape, key.shape
    if key.shape != value.shape or key.shape != (batch, kv_heads, held, dim) or heads % kv_heads:
        raise ValueError(
            f"key, value: expected shape ({batch}, a divisor of {heads}, key, {dim}) like query, "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if layout.batch not in (1, batch):
        raise ValueError(f"query: expected the layout's batch size, {layout.batch}, got {batch}")
    checked_range("key", range(held), layout.length)
    rows = checked_range("queries", range(held - count, held) if queries is None else queries, held)
    if len(rows) != count:
        raise ValueError(f"queries: expected the {count} positions of query, got {rows}")
    for segment, span in zip(layout.segments, layout.spans, strict=True):
        if not segment.causal and span.start < rows.stop and held < span.stop:
            raise ValueError(
                f"key: expected all of bidirectional segment {segment.name!r}, positions {span.start} to "
                f"{span.stop - 1}, because a query of it or after it sees all of it, got {held} positions"
            )
    return rows


def _unblinded(mask: Bool[Tensor, "#batch 1 #query key"]) -> Bool[Tensor, "#batch 1 #query key"]:
    """Let rows that see nothing see everything: a softmax over nothing is NaN, and so is its gradient.

    Such rows are padding; `_padding_zeroed` sets them to zero.
    """
    return mask | ~mask.any(dim=-1, keepdim=True)


def _padding_zeroed(
    output: Float[Tensor, "batch heads query head_dim"], layout: Layout, rows: range
) -> Float[Tensor, "batch heads query head_dim"]:
    """Zeros, in value and gradient, for the rows that are padding."""
    valid = layout.validity(rows, device=output.device)
    return output if valid is None else output.masked_fill(~valid[:, None, :, None], 0.0)
