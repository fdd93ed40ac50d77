"""The visibility rule for positions and for blocks of positions, and the FlexAttention block mask built from it.

Every position has a *rank*: the first position of its segment if the segment is bidirectional, its own position if the
segment is causal. Ranks never decrease along the sequence, so the order of segments and the order inside a causal
segment are one integer comparison. Where segments see each other in another way, a table of segments by segments, their
*relation*, decides, and ranks order the positions of causal segments alone. Every mask in this package is computed by
`visible` or `visible_blocks`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from moteur.masks.segments import ALL, ITSELF, NOTHING


class Positions(NamedTuple):
    """What the rule reads of a set of positions.

    Attributes:
        rank: Order of visibility.
        document: Packed document of each position; `None` if there is only one.
        valid: False where a position is padding; `None` if there is no padding.
        segment: Row of the relation; `None` if ranks alone decide.
        window: How many ranks, its own included, a query sees of its causal segment; `None` if it sees them all.
    """

    rank: Int[Tensor, "..."]
    document: Int[Tensor, "..."] | None
    valid: Bool[Tensor, "..."] | None
    segment: Int[Tensor, "..."] | None = None
    window: Int[Tensor, "..."] | None = None


class Blocks(NamedTuple):
    """Bounds of `Positions` over blocks of positions.

    Attributes:
        rank: Smallest and largest rank in each block.
        document: Smallest and largest document in each block; `None` if there is only one document.
        any_valid: True where at least one position of the block is valid.
        all_valid: True where every position of the block exists and is valid.
        segment: First and last segment in each block; `None` if ranks alone decide.
        window: Smallest and largest window in each block; `None` if there is none.
    """

    rank: Int[Tensor, "2 ..."]
    document: Int[Tensor, "2 ..."] | None
    any_valid: Bool[Tensor, "..."]
    all_valid: Bool[Tensor, "..."]
    segment: Int[Tensor, "2 ..."] | None
    window: Int[Tensor, "2 ..."] | None


Held = TypeVar("Held", Positions, Blocks)


def each(change: Callable[[Tensor], Tensor], held: Held) -> Held:
    """Apply a function to every tensor of some positions or blocks."""
    kind = cast("Callable[..., Held]", type(held))  # torch.compile of 2.10 does not trace `_make`
    return kind(*[None if part is None else change(part) for part in held])


def filled(
    parts: Sequence[tuple[int, range]], numbers: Sequence[int | None], device: torch.device
) -> Int[Tensor, "1 seq"]:
    """One number for all positions of a part; where it is None, the positions themselves."""
    filled = [
        torch.arange(part.start, part.stop, dtype=torch.int32, device=device)
        if number is None
        else torch.full((len(part),), number, dtype=torch.int32, device=device)
        for (_, part), number in zip(parts, numbers, strict=True)
    ]
    return torch.cat(filled)[None]


def visible(
    query: Positions, key: Positions, relation: UInt8[Tensor, "segment segment"] | None = None
) -> Bool[Tensor, "..."]:
    r"""Whether each query may attend to each key. The tensors of both arguments are broadcast.

    $$\text{visible}(q, k) = r_k \le r_q \;\wedge\; d_k = d_q \;\wedge\; v_k \;\wedge\; v_q$$

    with rank $r$, document $d$ and validity $v$. With a window $w_q$ also $r_q - r_k < w_q$. Given a relation, ranks
    and windows only count where it says `ITSELF`.

    Examples:
        >>> rank = torch.tensor([0, 0, 2])  # a bidirectional segment of two positions, then one more position
        >>> visible(Positions(rank[:, None], None, None), Positions(rank[None, :], None, None)).int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    seen = key.rank <= query.rank
    if query.window is not None:
        seen = seen & (query.rank - key.rank < query.window)
    if relation is not None:
        assert query.segment is not None
        assert key.segment is not None
        much = relation[query.segment, key.segment]
        seen = (much == ALL) | ((much == ITSELF) & seen)
    if query.document is not None and key.document is not None:
        seen = seen & (key.document == query.document)
    if key.valid is not None:
        seen = seen & key.valid
    if query.valid is not None:
        seen = seen & query.valid
    return seen


def visible_blocks(
    queries: Blocks, keys: Blocks, relation: UInt8[Tensor, "segment segment"] | None = None
) -> tuple[Bool[Tensor, "..."], Bool[Tensor, "..."]]:
    """The rule for all pairs of blocks, shaped (..., query, key), by interval arithmetic.

    Returns:
        `(full, partial)`. In a full pair every query sees every key. In a partial pair this is not certain from the
            bounds, and some query may see some key. In any other pair nothing is visible. Bounds decide exactly unless
            there are padding, documents, windows, or a relation in which segments are empty or see later ones; then a
            pair can be called partial although it is full or empty.
    """
    query, key = each(lambda held: held[..., :, None], queries), each(lambda held: held[..., None, :], keys)
    (query_low, query_high), (key_low, key_high) = query.rank, key.rank
    full, some = key_high <= query_low, key_low <= query_high
    if query.window is not None:
        shortest, longest = query.window
        full = full & (query_high - key_low < shortest)
        some = some & (query_low - key_high < longest)
    if relation is not None:
        assert query.segment is not None
        assert key.segment is not None
        none, itself, whole = (_pairs(relation == much, query.segment, key.segment) for much in (NOTHING, ITSELF, ALL))
        full = (none == 0) & (full | (itself == 0))
        some = (whole > 0) | (some & (itself > 0))
    full = full & key.all_valid & query.all_valid
    some = some & key.any_valid & query.any_valid
    if query.document is not None and key.document is not None:
        (query_first, query_last), (key_first, key_last) = query.document, key.document
        full = full & (torch.maximum(query_last, key_last) == torch.minimum(query_first, key_first))
        some = some & (torch.maximum(query_first, key_first) <= torch.minimum(query_last, key_last))
    return full, some & ~full


def _pairs(
    chosen: Bool[Tensor, "segment segment"], rows: Int[Tensor, "2 ..."], columns: Int[Tensor, "2 ..."]
) -> Int[Tensor, "..."]:
    """Number of chosen pairs between the segments first to last of each block of rows and each block of columns."""
    before = pad(chosen.int().cumsum(0).cumsum(1), (1, 0, 1, 0))  # chosen above and left of each place
    (top, bottom), (left, right) = rows, columns
    inside = before[bottom + 1, right + 1] - before[top, right + 1]
    return inside - before[bottom + 1, left] + before[top, left]


def block_mask(
    queries: Positions, keys: Positions, block_size: int, relation: UInt8[Tensor, "segment segment"] | None = None
) -> BlockMask:
    """FlexAttention block mask for positions of shape (batch, query) and (batch, key).

    The kernel skips invisible pairs of blocks, computes full pairs without the rule, and applies the rule to every
    position of the partial ones.
    """
    full, undecided = visible_blocks(_bounds(queries, block_size), _bounds(keys, block_size), relation)
    kv_num_blocks, kv_indices = _listed(undecided)
    full_kv_num_blocks, full_kv_indices = _listed(full)
    q_num_blocks, q_indices = _listed(undecided.mT)
    full_q_num_blocks, full_q_indices = _listed(full.mT)
    return BlockMask(
        seq_lengths=(queries.rank.shape[-1], keys.rank.shape[-1]),
        kv_num_blocks=kv_num_blocks,
        kv_indices=kv_indices,
        full_kv_num_blocks=full_kv_num_blocks,
        full_kv_indices=full_kv_indices,
        # Both directions are given: `BlockMask.from_kv_blocks` computes the second from the first in twice the time.
        q_num_blocks=q_num_blocks,
        q_indices=q_indices,
        full_q_num_blocks=full_q_num_blocks,
        full_q_indices=full_q_indices,
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=partial(_visible_at, queries=queries, keys=keys, relation=relation),  # a lambda cannot be pickled
    )


def _visible_at(
    batch: Tensor,
    _head: Tensor,
    query: Tensor,
    key: Tensor,
    *,
    queries: Positions,
    keys: Positions,
    relation: UInt8[Tensor, "segment segment"] | None,
) -> Tensor:
    """FlexAttention's `mask_mod`: the rule for one query and one key of a sample."""
    return visible(_at(queries, batch, query), _at(keys, batch, key), relation)


def _at(positions: Positions, batch: Tensor, index: Tensor) -> Positions:
    """Positions at `index`. A tensor with one row serves every sample."""
    return each(lambda held: held[batch if held.shape[0] > 1 else torch.zeros_like(batch), index], positions)


def _bounds(positions: Positions, block_size: int) -> Blocks:
    """Bounds over blocks, shaped (batch, block)."""
    valid = torch.ones_like(positions.rank, dtype=torch.bool) if positions.valid is None else positions.valid
    return Blocks(
        _extremes(positions.rank, block_size),
        None if positions.document is None else _extremes(positions.document, block_size),
        _cut(valid, block_size).any(dim=-1),
        # Positions beyond the end count as padding, so an incomplete last block is never full.
        _cut(valid, block_size, filler=False).all(dim=-1),
        None if positions.segment is None else _extremes(positions.segment, block_size),
        None if positions.window is None else _extremes(positions.window, block_size),
    )


def _extremes(held: Int[Tensor, "batch seq"], block_size: int) -> Int[Tensor, "2 batch block"]:
    return torch.stack(_cut(held, block_size).aminmax(dim=-1))


def _cut(
    held: Shaped[Tensor, "batch seq"], block_size: int, *, filler: bool | None = None
) -> Shaped[Tensor, "batch block token"]:
    """Cut into blocks; an incomplete last block is filled with `filler`, or with the last position."""
    last = held[:, -1:] if filler is None else torch.full_like(held[:, -1:], filler)
    filled = torch.cat([held, last.expand(-1, -held.shape[-1] % block_size)], dim=-1)
    return rearrange(filled, "batch (block token) -> batch block token", token=block_size)


def _listed(
    pairs: Bool[Tensor, "batch row column"],
) -> tuple[Int[Tensor, "batch 1 row"], Int[Tensor, "batch 1 row column"]]:
    """Number of chosen columns in each row, and all column numbers with the chosen ones first; one for all heads."""
    chosen = pairs[:, None]
    order = torch.argsort(chosen.to(torch.uint8), dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
