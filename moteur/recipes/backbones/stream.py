"""The token stream of one expert: tokens, which of them are valid, and their positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """Tokens of one expert.

    Attributes:
        tokens: Embedded tokens.
        valid: False on padding and missing cameras: seen by nobody, and taking no position. None means that all are
            valid.
        positions: Rotary position on each axis (one axis, or time, height and width); a batch of 1 stands for all.
        following: Position of the first token after this stream.
    """

    tokens: Float[Tensor, "batch seq dim"]
    valid: Bool[Tensor, "batch seq"] | None
    positions: Int[Tensor, "axes #batch seq"]  # noqa: F821 -- ruff takes what follows # for a comment
    following: Int[Tensor, " #batch"]


def continued(tokens: Float[Tensor, "batch seq dim"], valid: Bool[Tensor, "batch seq"] | None, after: Stream) -> Stream:
    """A stream whose valid tokens take one position each, on all axes, right after another stream's last."""
    ones = torch.ones(1, tokens.shape[1], dtype=torch.long, device=tokens.device)
    steps = ones if valid is None else valid.long()
    counted = after.following[:, None] + torch.cumsum(steps, dim=1)
    positions = (counted - steps).expand(after.positions.shape[0], -1, -1)
    return Stream(tokens=tokens, valid=valid, positions=positions, following=counted[:, -1])


def understanding_stream(
    views: Float[Tensor, "batch view token dim"],
    text: Float[Tensor, "batch text dim"],
    *,
    view_valid: Bool[Tensor, "batch view"] | None,
    attention_mask: Bool[Tensor, "batch text"] | None,
    advance: Int[Tensor, " token"],
    offsets: Int[Tensor, "axes token"],
) -> Stream:
    """The views one after another, then the instruction. Source: the InternVLA-A1 paper.

    Args:
        views: Embedded tokens of each view.
        text: Embedded tokens of the instruction, right-padded.
        view_valid: False for missing cameras; None means that all are there.
        attention_mask: False on padding of the instruction; None means that there is none.
        advance: By how much the position grows behind each token of a view, if it is valid; words advance by one.
        offsets: What is added to a token's own position, on each axis; words have none.
    """
    batch, count, length, _ = views.shape
    words = text.shape[1]
    grow = torch.cat([advance.repeat(count), advance.new_ones(words)])
    valid: Tensor | None = None
    steps = grow[None]
    if view_valid is not None or attention_mask is not None:
        cameras = advance.new_ones(batch, count) if view_valid is None else view_valid
        mask = advance.new_ones(batch, words) if attention_mask is None else attention_mask
        valid = torch.cat([cameras.bool().repeat_interleave(length, dim=1), mask.bool()], dim=1)
        steps = grow * valid
    counted = torch.cumsum(steps, dim=1)
    spread = torch.cat([offsets.repeat(1, count), offsets.new_zeros(offsets.shape[0], words)], dim=1)
    positions = (counted - steps) + spread[:, None]
    return Stream(torch.cat([views.flatten(1, 2), text], dim=1), valid, positions, following=counted[:, -1])
