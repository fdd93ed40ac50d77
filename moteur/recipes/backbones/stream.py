"""A stream on its way into the Mixture-of-Transformers: tokens, which of them are real, where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Steps:
    """How positions run along the understanding stream of one layout of views.

    Attributes:
        advance: By how much the position grows behind each token, if the token is valid.
        offsets: What is added to a token's own position, on each axis.
    """

    advance: Int[Tensor, " seq"]
    offsets: Int[Tensor, "axes seq"]

    def positions(
        self, valid: Bool[Tensor, "batch seq"]
    ) -> tuple[Int[Tensor, "axes batch seq"], Int[Tensor, " batch"]]:
        """Rotary positions, and the position after the last valid token; invalid tokens are skipped."""
        steps = self.advance * valid
        counted = torch.cumsum(steps, dim=1)
        return (counted - steps) + self.offsets[:, None], counted[:, -1]


@runtime_checkable
class Arrangement(Protocol):
    """How a backbone lays views and text out, apart from its weights."""

    def spans(self, image_grid: tuple[tuple[int, int], ...]) -> list[Span]:
        """Where each view lies in the stream."""
        ...

    def steps(
        self, image_grid: tuple[tuple[int, int], ...], *, length: int, device: torch.device | None = None
    ) -> Steps:
        """How positions run along a stream of `length` tokens that begins with these views."""
        ...
