"""Batches of cached latents made in a loader's worker are those made in the training process."""

import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from moteur.data.latents import LatentCollator, LatentDataset, latent_inputs, latent_targets, write_latents
from moteur.data.loading import Loader
from moteur.recipes import Inputs, InternVLAA1, Processor, Targets
from moteur.recipes.collate import Collator
from moteur.sampling import DatasetPool, EpochOrder, Sampler

from .conftest import Recorded


@pytest.fixture(scope="module")
def datasets(
    arm: Recorded, person: Recorded, model: InternVLAA1, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LatentDataset]:
    """Both robots, read from one folder of latents."""
    folder = tmp_path_factory.mktemp("latents")

    def cached(recorded: Recorded, folder: Path) -> LatentDataset:
        assert model.foresight is not None
        dataset = recorded.prepared()
        return LatentDataset(dataset, write_latents(folder, dataset, model.foresight, model.config, progress=False))

    return {"arm": cached(arm, folder), "person": cached(person, folder)}


def expect_equal(found: Inputs | Targets, expected: Inputs | Targets) -> None:
    """Every field is there or not, and holds the same bits."""
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype, field.name
            assert torch.equal(ours.cpu(), theirs), field.name
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("repeated_history", [False, True])
def test_a_collated_batch_of_two_robots_is_what_latent_inputs_and_latent_targets_make(
    datasets: dict[str, LatentDataset], processor: Processor, repeated_history: bool, device: torch.device
) -> None:
    samples = [datasets[name][place] for name, place in (("arm", 0), ("person", 10), ("arm", 7), ("arm", 24))]
    batch = LatentCollator(processor, repeated_history=repeated_history)(samples)
    assert batch.robots == ("arm", "person", "arm", "arm")
    inputs, targets = batch.to(device)
    assert inputs.state.device.type == device.type
    together = default_collate(samples)
    expect_equal(inputs, latent_inputs(together, processor))
    expect_equal(targets, latent_targets(together, repeated_history=repeated_history))
    assert targets.valid_future is not None
    assert bool(targets.valid_future[0].any()) == repeated_history  # its history lies before the episode


def test_a_worker_makes_the_same_batches_and_the_model_learns_the_same_from_them(
    datasets: dict[str, LatentDataset], model: InternVLAA1, processor: Processor
) -> None:
    sampler = Sampler(EpochOrder({name: len(dataset) for name, dataset in datasets.items()}, seed=2))
    pairs = list(Sampler(sampler.order))
    loader = Loader(
        DatasetPool(datasets.__getitem__),
        sampler,
        batch_size=18,
        collate=LatentCollator(processor),
        workers=1,
        pin=False,
    )
    for number, batch in enumerate(loader):
        inputs, targets = batch.to("cpu")
        together = default_collate([datasets[name][frame] for name, frame in pairs[18 * number :][:18]])
        assert set(batch.robots) == {"arm", "person"}
        expect_equal(inputs, latent_inputs(together, processor))
        expect_equal(targets, latent_targets(together))
        losses = [
            model.loss(*halves, generator=torch.Generator().manual_seed(0)).total
            for halves in ((inputs, targets), (latent_inputs(together, processor), latent_targets(together)))
        ]
        assert torch.equal(*losses)
    assert sampler.order.length == len(pairs) == 36


def test_a_collator_given_the_other_kind_of_samples_names_the_right_one(
    arm: Recorded, datasets: dict[str, LatentDataset], processor: Processor
) -> None:
    with pytest.raises(ValueError, match=r"expected frames, got latents; moteur\.recipes\.latents\.LatentCollator"):
        Collator(processor)([datasets["arm"][0]])
    with pytest.raises(ValueError, match=r"expected those of LatentDataset, got \[.*'images'.*; frames take Collator"):
        LatentCollator(processor)([arm.prepared()[0]])
    assert pickle.loads(pickle.dumps(LatentCollator(processor, repeated_history=True))).repeated_history  # noqa: S301
