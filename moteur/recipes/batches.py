"""From a batch of prepared samples to what the recipe takes."""

from dataclasses import replace

import torch

from moteur.data import Sample
from moteur.recipes.inputs import Targets
from moteur.recipes.processing import Observation

_TIMES = 3


def observation_of(batch: Sample) -> Observation:
    """The policy's side of a batch: frames of t-15 and t, state, instructions, and which cameras there are.

    Args:
        batch: Samples of `RobotTransform`, stacked by `stack_samples`; robots may be mixed.

    Raises:
        ValueError: The samples are of the present alone.
    """
    _check_times(batch)
    frames = [batch.frames[:, view, :2] for view in range(batch.frames.shape[1])]
    return Observation(frames, batch.state, list(batch.instruction), batch.view_valid)


def targets_of(batch: Sample, *, repeated_history: bool = False) -> Targets:
    """The teacher's side of a batch, with every mask: steps, dimensions, samples without actions, invented frames.

    Args:
        batch: As for `observation_of`.
        repeated_history: Learn foresight also where the frame of t-15 lies before the episode and is a copy of its
            first frame, as the released code does. The policy sees that copy in any case; by default it is not asked
            to predict a motion of which it was shown none.

    Raises:
        ValueError: The samples are of the present alone.
    """
    _check_times(batch)
    frames = batch.frames[:, :, 2]
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    return replace(masked_targets(batch, repeated_history=repeated_history), future_frames=frames)


def masked_targets(batch: Sample, *, repeated_history: bool = False) -> Targets:
    """Return what `targets_of` does, without the frames."""
    valid = batch.frame_valid
    return Targets(
        actions=batch.actions,
        valid_steps=batch.valid_steps,
        valid_dims=batch.valid_dims,
        valid_samples=batch.valid_sample,
        valid_future=valid[:, :, 2] if repeated_history else valid[:, :, 2] & valid[:, :, 0],
    )


def _check_times(batch: Sample) -> None:
    times = batch.frames.shape[2]
    if times != _TIMES:
        raise ValueError(
            f"samples: expected history, present and future, got {times} time; change RobotTransform's window"
        )
