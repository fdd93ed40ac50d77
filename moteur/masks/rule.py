"""The one visibility rule, for single positions and for whole blocks of them.

Every position has a *rank*: the first position of its segment if the segment is bidirectional, its own position if the
segment is causal. Ranks never decrease along the sequence, so "not later than mine" is one integer comparison, inside a
segment as well as between segments. Every rendering in this package is one of the two functions below.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Positions(NamedTuple):
    """What the rule knows about a set of positions; `None` stands for "all in one document" and "all valid".

    Attributes:
        rank: the order of visibility, non-decreasing along the sequence.
        document: the packed document each position belongs to.
        valid: False where a position is padding.
    """

    rank: Int[Tensor, "..."]
    document: Int[Tensor, "..."] | None
    valid: Bool[Tensor, "..."] | None


class Blocks(NamedTuple):
    """Bounds of `Positions` over blocks of positions: what is certain about a block without looking inside.

    Attributes:
        rank: least and greatest rank in each block.
        document: least and greatest document in each block.
        some_valid: True where at least one position of the block is valid.
        all_valid: True where every position of the block exists and is valid.
    """

    rank: tuple[Int[Tensor, "..."], Int[Tensor, "..."]]
    document: tuple[Int[Tensor, "..."], Int[Tensor, "..."]] | None
    some_valid: Bool[Tensor, "..."]
    all_valid: Bool[Tensor, "..."]


def each(change: Callable[[Tensor], Tensor], positions: Positions) -> Positions:
    """The same positions with `change` applied to every tensor that is held."""
    document, valid = positions.document, positions.valid
    return Positions(
        change(positions.rank),
        None if document is None else change(document),
        None if valid is None else change(valid),
    )


def visible(query: Positions, key: Positions) -> Bool[Tensor, "..."]:
    r"""Whether each query may attend to each key; the tensors of the two arguments are broadcast.

    $$\text{visible}(q, k) = r_k \le r_q \;\wedge\; d_k = d_q \;\wedge\; v_k \;\wedge\; v_q$$

    with rank $r$, document $d$ and validity $v$.

    Example:
        >>> rank = torch.tensor([0, 0, 2])  # two tokens that see each other, and one that comes after
        >>> visible(Positions(rank[:, None], None, None), Positions(rank[None, :], None, None)).int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    seen = key.rank <= query.rank
    if query.document is not None and key.document is not None:
        seen = seen & (key.document == query.document)
    if key.valid is not None:
        seen = seen & key.valid
    if query.valid is not None:
        seen = seen & query.valid
    return seen


def visible_blocks(query: Blocks, key: Blocks) -> tuple[Bool[Tensor, "..."], Bool[Tensor, "..."]]:
    """The rule by interval arithmetic: `(full, partial)` for each pair of blocks.

    `full` is True where every query of the one block certainly sees every key of the other; `partial` where that is
    not certain but some query may see some key. A pair that is neither holds nothing to see. Bounds are enough for
    ranks to be decided exactly; mixed documents and mixed validity make a pair partial, and the exact rule then decides
    inside it.
    """
    (query_low, query_high), (key_low, key_high) = query.rank, key.rank
    full = (key_high <= query_low) & key.all_valid & query.all_valid
    some = (key_low <= query_high) & key.some_valid & query.some_valid
    if query.document is not None and key.document is not None:
        (query_first, query_last), (key_first, key_last) = query.document, key.document
        full = full & (torch.maximum(query_last, key_last) == torch.minimum(query_first, key_first))
        some = some & (torch.maximum(query_first, key_first) <= torch.minimum(query_last, key_last))
    return full, some & ~full
