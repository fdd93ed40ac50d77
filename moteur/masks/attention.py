"""Attention under a layout through one kernel call that is given the whole mask."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from moteur.masks.layout import Layout
from moteur.masks.rows import answering, concerned_rows, silenced


def dense_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    r"""Softmax attention under the dense mask: the plain way, quadratic in memory, on any device and dtype.

    $$o_q = \sum_{k\,\text{visible}} \frac{\exp(x_q \cdot y_k / \sqrt{d})}{\sum_{k'\,\text{visible}}
    \exp(x_q \cdot y_{k'} / \sqrt{d})}\, z_k$$

    with query $x$, key $y$, value $z$ and head size $d$. Query head `h` uses key
    head `h * kv_heads // heads`.

    Padding must hold finite numbers, whichever: each gets a weight of exactly zero, but zero times infinity or NaN is
    NaN. A value (or, in this function and `structural_attention`, a key) of padding that is not finite spoils rows
    of its own sample, and of no other. Clear such numbers before the first layer, where it costs least.

    Args:
        query: queries of the positions `queries`.
        key: keys of the positions `[0, key)` of the layout; fewer than the layout has is normal, in a prefill.
        value: values of the same positions.
        layout: who may see whom.
        queries: positions of the queries; by default the last ones of those that `key` holds, so that joint training,
            prefill and cached decoding are the same call.

    Returns:
        One vector for each query; exactly zero, with zero gradient, for queries that are padding.

    Raises:
        ValueError: if query, key and value do not belong together, the keys exceed the layout or end inside a
            bidirectional segment that a query sees, the queries are not among the keys, the heads cannot be grouped, or
            the batch is not the layout's.

    Example:
        >>> import torch
        >>> from moteur.masks import Segment
        >>> layout = Layout([Segment("prefix", 2), Segment("action", 1)])
        >>> query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
        >>> value = torch.tensor([[[[0.0, 0.0], [2.0, 2.0], [7.0, 7.0]]]])
        >>> dense_attention(query, key, value, layout)[0, 0, :, 0]
        tensor([1., 1., 3.])
    """
    rows = concerned_rows(query, key, value, layout, queries)
    mask = layout.dense(rows, range(key.shape[2]), device=query.device)[:, None]
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, attn_mask=answering(mask), enable_gqa=grouped)
    return silenced(output, layout, rows)


def flex_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
    *,
    block_mask: BlockMask | None = None,
) -> Float[Tensor, "batch heads query head_dim"]:
    """The same attention through FlexAttention and the layout's block mask.

    Wrap the code that calls it in `torch.compile`: uncompiled, FlexAttention computes the whole score matrix and warns
    about it. It has no gradient on a CPU.

    Args:
        query: as in `dense_attention`.
        key: as in `dense_attention`.
        value: as in `dense_attention`.
        layout: who may see whom.
        queries: as in `dense_attention`.
        block_mask: `layout.block_mask(queries, range(key_len))` if it is at hand: built once, it serves every layer.

    Returns:
        As `dense_attention`.

    Raises:
        ValueError: as in `dense_attention`, or if `block_mask` is of another size, or for another number of samples
            or heads.
    """
    rows, held = concerned_rows(query, key, value, layout, queries), key.shape[2]
    if block_mask is None:
        block_mask = layout.block_mask(rows, range(held), device=query.device)
    if tuple(block_mask.seq_lengths) != (len(rows), held):
        raise ValueError(f"block_mask must be for {(len(rows), held)} queries and keys, got {block_mask.seq_lengths}")
    samples, heads = block_mask.kv_num_blocks.shape[:2]
    if samples not in (1, query.shape[0]) or heads not in (1, query.shape[1]):
        raise ValueError(
            f"block_mask must be for 1 or {query.shape[0]} samples and 1 or {query.shape[1]} heads, "
            f"got {samples} and {heads}"
        )
    grouped = query.shape[1] != key.shape[1]
    output = flex.flex_attention(query, key, value, block_mask=block_mask, enable_gqa=grouped)
    assert isinstance(output, Tensor)  # nothing else was asked for
    # Every FlexAttention kernel returns zeros for a row without keys, so nothing is zeroed here; and the one for CPUs
    # cannot be compiled with an elementwise operation behind it.
    return output
