"""From a batch of prepared samples to what the recipe takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moteur.recipes.inputs import Targets
from moteur.recipes.processing import Observation

Batch = Mapping[str, Any]


def observation_of(batch: Batch) -> Observation:
    """The policy's side of a batch: frames of t-15 and t, state, instructions, and which cameras there are.

    Args:
        batch: Samples of `Preparation` as `torch.utils.data.default_collate` stacks them; robots may be mixed.
    """
    frames = [batch["images"][:, view, :2] for view in range(batch["images"].shape[1])]
    return Observation(frames, batch["state"], list(batch["task"]), batch["view_valid"])


def targets_of(batch: Batch) -> Targets:
    """The teacher's side of a batch, with every mask: steps, dimensions, samples without actions, missing futures.

    Args:
        batch: As for `observation_of`.
    """
    return Targets(
        actions=batch["actions"],
        valid_steps=batch["valid_steps"],
        valid_dims=batch["valid_dims"],
        valid_samples=batch["valid_sample"],
        future_frames=_unit_range(batch["images"][:, :, 2]),
        valid_future=batch["frame_valid"][:, :, 2],
    )


def _unit_range(frames: Tensor) -> Tensor:
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames
