"""A stream on its way into the Mixture-of-Transformers: tokens, which of them are real, where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """Tokens of one expert.

    Attributes:
        tokens: Embedded tokens.
        valid: False on padding and missing cameras: seen by nobody, and taking no position.
        positions: Rotary position on each axis (one axis, or time, height and width).
        following: Position of the first token after this stream, per sample.
    """

    tokens: Float[Tensor, "batch seq dim"]
    valid: Bool[Tensor, "batch seq"]
    positions: Int[Tensor, "axes batch seq"]
    following: Int[Tensor, " batch"]


def continued(tokens: Float[Tensor, "batch seq dim"], valid: Bool[Tensor, "batch seq"], after: Stream) -> Stream:
    """A stream whose valid tokens take one position each, on all axes, right after another stream's last."""
    steps = valid.long()
    counted = after.following[:, None] + torch.cumsum(steps, dim=1)
    positions = (counted - steps).expand(after.positions.shape[0], -1, -1)
    return Stream(tokens=tokens, valid=valid, positions=positions, following=after.following + steps.sum(dim=1))


@dataclass(frozen=True)
class Span:
    """Where a view lies in the understanding stream: tokens `start` to `stop`, of which images `first` to `last`."""

    start: int
    first: int
    last: int
    stop: int


def spans(lengths: Sequence[int], *, around: int) -> list[Span]:
    """Views one after another, each of so many image tokens with `around` tokens before and behind it.

    >>> spans([4, 4], around=1)[1]
    Span(start=6, first=7, last=11, stop=12)
    """
    ends = list(accumulate(length + 2 * around for length in lengths))
    return [
        Span(end - length - 2 * around, end - length - around, end - around, end)
        for length, end in zip(lengths, ends, strict=True)
    ]
