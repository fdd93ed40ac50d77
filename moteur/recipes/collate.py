"""From prepared samples to what the recipe learns from: made in a loader's worker, finished on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moteur.data import Sample, stack_samples
from moteur.recipes.batches import masked_targets, observation_of
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.processing import Processor

Half = TypeVar("Half", Inputs, Targets)


@dataclass(frozen=True)
class TrainingBatch:
    """A batch on its way from a worker to the device.

    Frames travel as they were stored, as bytes: a quarter of the memory, of the copying, and of the pinning. They
    become floats in `to`, where they arrive.

    Attributes:
        images: Frames of every view at t-15, t and t+15; None where latents stand in `inputs` and `targets` instead.
        inputs: What the policy sees, still without frames.
        targets: What it learns from, still without frames.
        robots: Name of each sample's robot.
    """

    images: UInt8[Tensor, "batch view 3 3 size size"] | Float[Tensor, "batch view 3 3 size size"] | None
    inputs: Inputs
    targets: Targets
    robots: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.robots)

    def to(self, device: torch.device | str) -> tuple[Inputs, Targets]:
        """Inputs and targets on a device, frames in [0, 1]; copies do not block if the batch is pinned."""

        def there(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        inputs, targets = _each(self.inputs, there), _each(self.targets, there)
        if self.images is None:
            return inputs, targets
        frames = there(self.images)
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        return replace(inputs, frames=frames[:, :, :2]), replace(targets, future_frames=frames[:, :, 2])

    def pin_memory(self) -> "TrainingBatch":
        """Return the same batch in page-locked memory; a loader that pins calls this."""
        inputs, targets = _each(self.inputs, Tensor.pin_memory), _each(self.targets, Tensor.pin_memory)
        images = None if self.images is None else self.images.pin_memory()
        return replace(self, images=images, inputs=inputs, targets=targets)


class Collator:
    """Makes a `TrainingBatch` of samples that `RobotTransform` made; robots may be mixed.

    Args:
        processor: The recipe's processor: token ids and patches are made here, in the worker.
        repeated_history: See `targets_of`.

    Raises:
        ValueError: When called with frames of another size than the recipe's, or with samples of latents.
    """

    def __init__(self, processor: Processor, *, repeated_history: bool = False) -> None:
        self.processor, self.repeated_history = processor, repeated_history

    def __call__(self, samples: Sequence[Sample]) -> TrainingBatch:
        """Stack samples and process them."""
        batch = stack_samples(samples)
        if batch.latents is not None:
            raise ValueError("samples: expected frames, got latents; moteur.data.latents.LatentCollator takes them")
        images, size = batch.frames, self.processor.config.frame_size
        if tuple(images.shape[-2:]) != (size, size):
            found = tuple(images.shape[-2:])
            raise ValueError(
                f"samples: expected frames of {(size, size)}, got {found}; give RobotTransform size={size}"
            )
        inputs = self.processor(observation_of(batch))
        targets = masked_targets(batch, repeated_history=self.repeated_history)
        return TrainingBatch(images, replace(inputs, frames=None), targets, tuple(batch.robot))


def _each(batch: Half, change: Callable[[Tensor], Tensor]) -> Half:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})
