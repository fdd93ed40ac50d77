"""Model inputs and targets from batches of samples with cached latents."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import default_collate

from moteur.recipes.batches import masked_targets
from moteur.recipes.collate import TrainingBatch
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.processing import Observation, Processor

Batch = Mapping[str, Any]


def latent_inputs(batch: Batch, processor: Processor) -> Inputs:
    """Model inputs of a batch of `LatentDataset`: frames of the present, latents of t-15 and t.

    Args:
        batch: Samples as `torch.utils.data.default_collate` stacks them; robots may be mixed.
        processor: Makes patches and token ids.
    """
    images = batch["images"][:, :, :1]
    frames = [images[:, view].expand(-1, 2, -1, -1, -1) for view in range(images.shape[1])]
    inputs = processor(Observation(frames, batch["state"], list(batch["task"]), batch["view_valid"]))
    return replace(inputs, frames=None, latents=batch["latents"][:, :, :2])


def latent_targets(batch: Batch, *, repeated_history: bool = False) -> Targets:
    """Training targets of a batch of `LatentDataset`: actions with their masks, latents of t+15.

    Args:
        batch: As for `latent_inputs`.
        repeated_history: As in `targets_of`.
    """
    targets = masked_targets({**batch, "frame_valid": batch["latent_valid"]}, repeated_history=repeated_history)
    return replace(targets, future_latents=batch["latents"][:, :, 2])


class LatentCollator:
    """Makes a `TrainingBatch` of samples of `LatentDataset`, as `Collator` does of frames; robots may be mixed.

    Latents travel as they were stored, and `TrainingBatch.to` gives what `latent_inputs` and `latent_targets` give.

    Args:
        processor: The recipe's processor: token ids and patches are made here, in the worker.
        repeated_history: See `targets_of`.

    Raises:
        ValueError: When called with samples that hold no latents, or frames of another size than the recipe's.
    """

    def __init__(self, processor: Processor, *, repeated_history: bool = False) -> None:
        self.processor, self.repeated_history = processor, repeated_history

    def __call__(self, samples: Sequence[dict[str, Any]]) -> TrainingBatch:
        """Stack samples and process them."""
        batch = default_collate(list(samples))
        if "latents" not in batch:
            raise ValueError(f"samples: expected those of LatentDataset, got {list(batch)}; frames take Collator")
        found, size = tuple(batch["images"].shape[-2:]), self.processor.config.frame_size
        if found != (size, size):
            raise ValueError(f"samples: expected frames of {(size, size)}, got {found}; give Preparation size={size}")
        inputs = latent_inputs(batch, self.processor)
        targets = latent_targets(batch, repeated_history=self.repeated_history)
        return TrainingBatch(None, inputs, targets, tuple(batch["robot"]))
