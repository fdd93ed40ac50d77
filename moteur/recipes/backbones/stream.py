"""A stream on its way into the Mixture-of-Transformers: tokens, which of them are real, where they stand."""

from dataclasses import dataclass

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
