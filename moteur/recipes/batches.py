"""From prepared samples to a training batch: made in a loader's worker, finished on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moteur.data import Sample
from moteur.recipes.inputs import Inputs, Targets, each_tensor
from moteur.recipes.processing import Processor

_WINDOW = 3  # history, present, future


@dataclass(frozen=True)
class TrainingBatch:
    """A batch on its way from a worker to the device. Pictures travel as the bytes they were stored as.

    Attributes:
        inputs: What the policy sees.
        targets: What it learns from.
        robots: Name of each sample's robot.
    """

    inputs: Inputs
    targets: Targets
    robots: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.robots)

    def to(self, device: torch.device | str) -> tuple[Inputs, Targets]:
        """Inputs and targets on a device; copies do not block if the batch is pinned."""
        return self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)

    def pin_memory(self) -> "TrainingBatch":
        """The same batch in page-locked memory; a loader that pins calls this."""
        inputs, targets = each_tensor(self.inputs, Tensor.pin_memory), each_tensor(self.targets, Tensor.pin_memory)
        return replace(self, inputs=inputs, targets=targets)


class Collator:
    """Makes a `TrainingBatch` of samples with pictures or cached latents; robots may be mixed.

    Args:
        processor: The recipe's processor; instructions become token ids here, in the worker.
        repeated_history: Learn foresight also where the frame of t-15 lies before the episode and is a copy of its
            first frame, as the released code does. By default such samples have no foresight loss: two equal frames
            show no motion. The policy sees the copy in any case.
    """

    def __init__(self, processor: Processor, *, repeated_history: bool = False) -> None:
        self.processor, self.repeated_history = processor, repeated_history

    def __call__(self, samples: Sequence[Sample]) -> TrainingBatch:
        """Stack samples, and split what the policy sees from what it learns from.

        Raises:
            ValueError: If a robot has more dimensions than the model, or the samples hold the present alone and the
                model foresees.
        """
        batch = Sample.stack(samples)
        config = self.processor.config
        times = batch.frames.shape[2]
        foresees = config.latent_shape is not None
        if foresees and batch.latents is None and times != _WINDOW:
            raise ValueError(f"samples: expected frames of t-15, t and t+15, got {times} time; change the window")
        for name, valid_dims, room in (
            ("state", batch.valid_state_dims, config.state_dim),
            ("action", batch.valid_dims, config.action_dim),
        ):
            if valid_dims[:, room:].any():
                needed = int(valid_dims.sum(dim=1).max())
                raise ValueError(f"samples: expected at most {room} {name} dimensions as the model has, got {needed}")
        ids, mask = self.processor.text(list(batch.instruction), batch.state, batch.valid_state_dims)
        future = batch.frames[:, :, 2] if foresees and batch.latents is None else None
        valid = batch.frame_valid
        present = times // 2  # the middle of history, present and future, or the only one
        frames = batch.frames[:, :, : present + 1] if foresees else batch.frames[:, :, present : present + 1]
        inputs = Inputs(
            frames=frames,
            instruction=ids,
            attention_mask=mask,
            view_valid=batch.view_valid,
            state=batch.state[:, : config.state_dim],
            latents=batch.latents if foresees else None,
        )
        valid_future: Tensor | None = None
        if foresees:
            valid_future = valid[:, :, 2] if self.repeated_history else valid[:, :, 2] & valid[:, :, 0]
        targets = Targets(
            actions=batch.actions[..., : config.action_dim],
            valid_steps=batch.valid_steps,
            valid_dims=batch.valid_dims[:, : config.action_dim],
            valid_samples=batch.valid_sample,
            future_frames=future,
            future_latents=batch.future_latents if foresees else None,
            valid_future=valid_future,
        )
        return TrainingBatch(inputs, targets, tuple(batch.robot))
