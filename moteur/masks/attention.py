"""Softmax attention under a layout: with the dense mask, through FlexAttention, or segment by segment."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from moteur.masks.layout import Layout
from moteur.masks.segments import Segment, checked_range


def dense_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None = None,
    *,
    insulated: Collection[str] = (),
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
        insulated: Names of segments whose keys and values get no gradient from queries of other segments than these
            (knowledge insulation, arXiv 2505.23705). The result is the same.

    Returns:
        One vector for each query; exactly zero, with zero gradient, for queries that are padding.

    Raises:
        ValueError: If the shapes of query, key, value and layout do not fit together, the queries are not among the
            keys, the keys end before a position that a query attends to, or an insulated segment is not there.

    Examples:
        >>> import torch
        >>> from moteur.masks import Segment
        >>> layout = Layout([Segment("prefix", 2), Segment("action", 1)])
        >>> query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
        >>> value = torch.tensor([[[[0.0, 0.0], [2.0, 2.0], [7.0, 7.0]]]])
        >>> dense_attention(query, key, value, layout)[0, 0, :, 0]
        tensor([1., 1., 3.])
    """
    rows, seen = _query_positions(query, key, value, layout, queries)
    shut = _insulated_spans(layout, insulated)
    if not shut:
        return _dense_attention(query, key, value, layout, rows)
    outputs: list[Tensor] = []
    for segment, own, _ in seen:
        closed, all_keys = () if segment.name in insulated else shut, [range(key.shape[2])]
        keys, values = _taken(key, all_keys, closed), _taken(value, all_keys, closed)
        outputs.append(_dense_attention(_rows_of(query, rows, own), keys, values, layout, own))
    return _cat(outputs, dim=2)


def _dense_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    rows: range,
) -> Float[Tensor, "batch heads query head_dim"]:
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

    Arguments, result and errors are those of `dense_attention`; nothing is insulated. One `block_mask` serves every
    layer, if `layout.block_mask(queries, range(key_len))` is built before; one of another size, or for another number
    of samples or heads, is a `ValueError`.
    """
    rows, _ = _query_positions(query, key, value, layout, queries)
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
    *,
    insulated: Collection[str] = (),
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention as one `scaled_dot_product_attention` per segment, over the keys that this segment sees.

    All rows of a bidirectional segment see the same keys, so they need no mask, and invisible scores are not computed.
    Keys that are one run, such as all up to the end of the segment, are a slice; several runs are copied together. A
    segment needs a mask in three cases:

    - Padding: a (batch, 1, 1, key) mask, if a segment that it sees has an entry in `layout.valid`.
    - Causal segment: its rows of the dense mask. No mask for a single row. The first segment of the sequence uses the
      kernel's own causal mode if it has no padding and no window.
    - Documents: its rows of the dense mask.

    Arguments, result and errors are those of `dense_attention`; a layout with ranks is refused, because its segments
    say nothing. Nothing is read back from the device.

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
    if layout.ranks is not None:
        raise ValueError("layout: expected segments without ranks, got ranks; take dense_attention or flex_attention")
    rows, seen = _query_positions(query, key, value, layout, queries)
    shut = _insulated_spans(layout, insulated)
    outputs: list[Tensor] = []
    for segment, own, runs in seen:
        closed = () if segment.name in insulated else shut
        asked, keys, values = _rows_of(query, rows, own), _taken(key, runs, closed), _taken(value, runs, closed)
        output = _segment_attention(asked, keys, values, layout, segment, rows=own, runs=runs)
        outputs.append(_padding_zeroed(output, layout, own))
    return _cat(outputs, dim=2)


def joined_attention(
    layout: Layout,
    streams: Mapping[str, str | Sequence[str]],
    *,
    order: Iterable[str],
    lengths: Mapping[str, int] | None = None,
    insulated: Collection[str] = (),
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Structural attention for a model that joins streams of tokens, held against the order and lengths of these.

    Args:
        layout: Which query attends to which key.
        streams: For each stream the segment, or the segments in order, that its tokens are. Streams that are absent
            have no entry.
        order: Names of streams in the order in which the model joins them; `mot.experts` of a `MoT`.
        lengths: Number of tokens of streams, `{name: tokens.shape[1]}`. Without it only their sums are checked, when
            keys arrive.
        insulated: Streams whose keys and values get no gradient from queries of other streams than these.

    Returns:
        `attention(query, key, value)`. Keys that do not end where a stream ends are a `ValueError`.

    Raises:
        ValueError: If the segments of the streams in this order are not those of the layout, a stream has another
            number of tokens than its segments, or a stream is not there.

    Examples:
        >>> layout = Layout([Segment("images", 4), Segment("state", 1), Segment("action", 3)])
        >>> streams = {"vlm": "images", "act": ["state", "action"]}
        >>> attention = joined_attention(layout, streams, order=["vlm", "act"])
        >>> joined_attention(layout, streams, order=["act", "vlm"])
        Traceback (most recent call last):
        ValueError: layout: expected the segments of streams act, vlm: state, action, images, got images, state, action
    """
    known = list(order)
    joined = [name for name in known if name in streams]
    if unknown := [name for name in (*streams, *(lengths or ()), *insulated) if name not in joined]:
        raise ValueError(f"streams: expected some of {known}, got {unknown}")
    parts: dict[str, list[str]] = {}
    for name in joined:
        held = streams[name]
        parts[name] = [held] if isinstance(held, str) else [*held]
    names = [segment for name in joined for segment in parts[name]]
    if names != list(layout.names):
        raise ValueError(
            f"layout: expected the segments of streams {', '.join(joined)}: {', '.join(names)}, "
            f"got {', '.join(layout.names)}"
        )
    sizes = {name: sum(len(layout.span(segment)) for segment in parts[name]) for name in joined}
    for name, length in (lengths or {}).items():
        if length != sizes[name]:
            raise ValueError(
                f"lengths: expected {sizes[name]} tokens of stream {name!r}, positions of {', '.join(parts[name])}, "
                f"got {length}"
            )
    inside = tuple(segment for name in joined if name in insulated for segment in parts[name])
    return partial(_joined_attention, layout=layout, ends=tuple(accumulate(sizes.values())), insulated=inside)


def _joined_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    *,
    layout: Layout,
    ends: Collection[int],
    insulated: Collection[str],
) -> Float[Tensor, "batch heads query head_dim"]:
    if key.shape[2] not in ends:
        raise ValueError(f"key: expected whole streams, which end at {', '.join(map(str, ends))}, got {key.shape[2]}")
    return structural_attention(query, key, value, layout, insulated=insulated)


def _segment_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    segment: Segment,
    *,
    rows: range,
    runs: Sequence[range],
) -> Float[Tensor, "batch heads query head_dim"]:
    """Attention of positions `rows`, all of one segment, over the keys of `runs`."""
    causal = segment.causal and len(rows) > 1
    valid = _validity(layout, runs, query.device)
    groups = query.shape[1] // key.shape[1]
    first = rows.start == 0 and runs[-1].stop == rows.stop and segment.window is None
    if causal and first and valid is None and layout.documents is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=groups > 1)
    mask: Bool[Tensor, "batch 1 rows key"] | None = None
    if causal or layout.documents is not None:
        parts = [layout.dense(rows, run, device=query.device) for run in runs]
        mask = _unblinded(_cat(parts, dim=-1)[:, None])
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


def _validity(layout: Layout, runs: Sequence[range], device: torch.device) -> Bool[Tensor, "batch key"] | None:
    """Validity of the keys of `runs`; None if no segment in them has an entry."""
    flags = [layout.validity(run, device=device) for run in runs]
    if len(flags) == 1 or all(flag is None for flag in flags):
        return flags[0]
    known = [
        torch.ones(layout.batch, len(run), dtype=torch.bool, device=device) if flag is None else flag
        for flag, run in zip(flags, runs, strict=True)
    ]
    return torch.cat(known, dim=-1)


def _insulated_spans(layout: Layout, insulated: Collection[str]) -> tuple[range, ...]:
    """Positions of insulated segments in order; none where no gradient is recorded."""
    if not insulated:
        return ()
    if unknown := set(insulated) - set(layout.names):
        raise ValueError(f"insulated: expected names among {list(layout.names)}, got {sorted(unknown)}")
    if not torch.is_grad_enabled():
        return ()
    return tuple(layout.span(name) for name in layout.names if name in insulated)


def _taken(
    held: Float[Tensor, "batch kv_heads key head_dim"], runs: Sequence[range], shut: Sequence[range]
) -> Float[Tensor, "batch kv_heads taken head_dim"]:
    """Keys or values of `runs`, those in `shut` without a gradient; a slice where it can be one."""
    if not shut:
        return _cat([held[:, :, run.start : run.stop] for run in runs], dim=2)
    parts: list[Tensor] = []
    for run in runs:
        edges = [edge for span in shut for edge in (span.start, span.stop) if run.start < edge < run.stop]
        for start, stop in pairwise([run.start, *edges, run.stop]):
            part = held[:, :, start:stop]
            parts.append(part.detach() if any(start in span for span in shut) else part)
    return _cat(parts, dim=2)


def _rows_of(
    query: Float[Tensor, "batch heads query head_dim"], rows: range, own: range
) -> Float[Tensor, "batch heads own head_dim"]:
    """Queries of positions `own`, out of those of positions `rows`."""
    return query[:, :, own.start - rows.start : own.stop - rows.start]


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Join parts; `torch.cat` would copy a single one as well."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=dim)


def _query_positions(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key head_dim"],
    layout: Layout,
    queries: range | None,
) -> tuple[range, list[tuple[Segment, range, tuple[range, ...]]]]:
    """Positions of the queries, `queries` or the last positions that `key` holds; and what they see, by segment.

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
    seen = layout.seen_by(rows)
    for segment, _, runs in seen:
        if held < runs[-1].stop:
            raise ValueError(
                f"key: expected at least {runs[-1].stop} positions, all that queries of segment {segment.name!r} see, "
                f"got {held}"
            )
    return rows, seen


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
