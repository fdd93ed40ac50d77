"""From samples with cached latents to what the recipe learns from, made in a loader's worker."""

from collections.abc import Sequence

from moteur.data import Sample, stack_samples
from moteur.data.latents.samples import latent_inputs, latent_targets
from moteur.recipes.collate import TrainingBatch
from moteur.recipes.processing import Processor


class LatentCollator:
    """Makes a `TrainingBatch` of samples of `LatentDataset`, as `Collator` does of frames; robots may be mixed.

    Latents travel as they were stored, and `TrainingBatch.to` gives what `latent_inputs` and `latent_targets` give.

    Args:
        processor: The recipe's processor: token ids and patches are made here, in the worker.
        repeated_history: See `targets_of`.

    Raises:
        ValueError: When called with samples that hold no latents.
    """

    def __init__(self, processor: Processor, *, repeated_history: bool = False) -> None:
        self.processor, self.repeated_history = processor, repeated_history

    def __call__(self, samples: Sequence[Sample]) -> TrainingBatch:
        """Stack samples and process them."""
        batch = stack_samples(samples)
        if batch.latents is None:
            raise ValueError(f"samples: expected those of LatentDataset, got {batch}; frames take Collator")
        inputs = latent_inputs(batch, self.processor)
        targets = latent_targets(batch, repeated_history=self.repeated_history)
        return TrainingBatch(None, inputs, targets, tuple(batch.robot))
