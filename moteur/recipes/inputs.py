"""What the model takes: processed tensors, one object for what it sees and one for what it learns from."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """What the policy sees: a batch of processed observations.

    Give the frames, or the tokenizer's latents of them (for frames that were encoded before), not both. A missing
    camera has `view_valid` False and its tokens False in `und_valid`; what its pixels hold does not
    matter, NaN included.

    Attributes:
        input_ids: Token ids of the understanding stream, image placeholders included, instruction last.
        und_valid: True where the understanding stream holds a token, False on padding and missing cameras.
        pixel_values: Normalised patches of the current frames, all views of a sample one after another; in the order
            of Qwen3-VL's processor (3B), or row by row with channel, row and column inside a patch (2B).
        image_grid: Patches of each view, (rows, columns).
        view_valid: True where the camera exists.
        state: Proprioceptive state, normalised, padded with zeros.
        frames: Frames in [0, 1] of the times t-15 and t, or None.
        latents: Cosmos latents of the same two times, or None.
    """

    input_ids: Int[Tensor, "batch und"]
    und_valid: Bool[Tensor, "batch und"]
    pixel_values: Float[Tensor, "batch patches patch_values"]
    image_grid: tuple[tuple[int, int], ...]
    view_valid: Bool[Tensor, "batch view"]
    state: Float[Tensor, "batch state"]
    frames: Float[Tensor, "batch view 2 3 height width"] | None = None
    latents: Float[Tensor, "batch view 2 channel rows columns"] | None = None


@dataclass(frozen=True)
class Targets:
    """What the policy learns from. Every mask is True where the element is real; None means all are.

    Attributes:
        actions: Action chunk, normalised, padded with zeros.
        valid_steps: False on steps past the end of the episode.
        valid_dims: False on padded action dimensions.
        valid_samples: False on samples without actions (human video).
        future_frames: Frames of t+15 in [0, 1], or None.
        future_latents: Their Cosmos latents, or None. With neither there is no foresight loss.
        valid_future: False where the frame of t+15 lies past the end of the episode. Missing cameras need no entry.
    """

    actions: Float[Tensor, "batch step action"]
    valid_steps: Bool[Tensor, "batch step"] | None = None
    valid_dims: Bool[Tensor, "batch action"] | None = None
    valid_samples: Bool[Tensor, " batch"] | None = None
    future_frames: Float[Tensor, "batch view 3 height width"] | None = None
    future_latents: Float[Tensor, "batch view channel rows columns"] | None = None
    valid_future: Bool[Tensor, "batch view"] | None = None


Batch = TypeVar("Batch", Inputs, Targets)


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """The same batch with every tensor on `device`."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})
