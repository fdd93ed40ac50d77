"""Cached latents are those that encoding gives, bit for bit, also through the loss."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from moteur.data import RobotDataset
from moteur.data.latents import LatentCache, LatentDataset, latent_inputs, latent_targets, write_latents
from moteur.recipes import InternVLAA1, Processor
from moteur.recipes.batches import observation_of, targets_of
from moteur.sampling import DatasetPool, Sampler, WeightedOrder

from .conftest import TIMES, Recorded


@pytest.fixture(scope="module", autouse=True)
def same_sums_in_any_batch() -> Iterator[None]:
    """oneDNN and NNPACK choose how to sum by the size of the batch; without them a frame's company does not matter."""
    with torch.backends.nnpack.flags(enabled=False):
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        yield
        torch.backends.mkldnn.enabled = before


@pytest.fixture(scope="module")
def folder(arm: Recorded, person: Recorded, model: InternVLAA1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the latents of both sets."""
    made = tmp_path_factory.mktemp("latents")
    for recorded in (arm, person):
        assert model.foresight is not None
        write_latents(made, recorded.prepared(), model.foresight, model.config, progress=False)
    return made


def cached(recorded: Recorded, folder: Path, model: InternVLAA1, **window: Any) -> LatentDataset:  # noqa: ANN401
    assert model.foresight is not None
    dataset = recorded.prepared(**window)
    return LatentDataset(dataset, LatentCache(folder, dataset, model.foresight, model.config, progress=False))


def encoded(sample: dict[str, Any], model: InternVLAA1) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.encode(sample["images"].float() / 255)


@pytest.mark.parametrize(
    "window",
    [{"frames": TIMES}, {"frames": (-15, 0, 15)}, {"frames": (-1, 0, 7)}, {"seconds": (-0.3, 0.0, 0.3)}],
    ids=["frames", "longer than the episodes", "uneven", "seconds"],
)
def test_every_latent_of_every_sample_is_the_encoded_frame_and_marked_where_it_is_no_real_one(
    arm: Recorded, person: Recorded, folder: Path, model: InternVLAA1, window: dict[str, Any]
) -> None:
    for recorded in (arm, person):
        whole, ours = recorded.prepared(**window), cached(recorded, folder, model, **window)
        assert len(ours) == len(whole)
        assert ours.preparation.window == whole.preparation.window  # what a checkpoint keeps
        for position in range(len(whole)):
            sample, expected = ours[position], whole[position]
            assert torch.equal(sample["latent_valid"], expected["frame_valid"])
            assert torch.equal(sample["images"], expected["images"][:, 1:2])
            assert torch.equal(sample["frame_valid"], expected["frame_valid"][:, 1:2])
            latents = encoded(expected, model)
            for view, present in enumerate(expected["view_valid"]):
                # A missing camera's frames are white or black, and masked either way.
                assert torch.equal(sample["latents"][view], latents[view] if present else latents[view] * 0)
            for name in expected.keys() - {"images", "frame_valid", "task", "robot"}:
                assert torch.equal(sample[name], expected[name]), name


def mixed_batches(
    datasets: dict[str, RobotDataset] | dict[str, LatentDataset], *, workers: int = 0
) -> list[dict[str, Any]]:
    """Batches of both robots, drawn by the mixture."""
    order = WeightedOrder({name: len(data) for name, data in datasets.items()}, {"arm": 0.6, "person": 0.4}, draws=12)
    pool = DatasetPool(datasets.__getitem__)
    spawned = {"multiprocessing_context": "spawn"} if workers else {}  # forking is unsafe once threads are in use
    loader = DataLoader(pool, batch_size=6, sampler=Sampler(order), num_workers=workers, **spawned)  # pyright: ignore[reportArgumentType]
    return list(loader)


def test_losses_and_gradients_of_a_mixture_of_two_robots_are_the_same_bits_from_the_cache(
    arm: Recorded, person: Recorded, folder: Path, model: InternVLAA1, processor: Processor
) -> None:
    whole = {"arm": arm.prepared(), "person": person.prepared()}
    ours = {"arm": cached(arm, folder, model), "person": cached(person, folder, model)}
    for slow, fast in zip(mixed_batches(whole), mixed_batches(ours), strict=True):
        assert fast["robot"] == slow["robot"]
        assert set(slow["robot"]) == {"arm", "person"}
        results = []
        for inputs, targets in (
            (processor(observation_of(slow)), targets_of(slow)),
            (latent_inputs(fast, processor), latent_targets(fast)),
        ):
            model.zero_grad()
            losses = model.loss(inputs, targets, generator=torch.Generator().manual_seed(0))
            losses.total.backward()
            results.append((losses, [parameter.grad for parameter in model.parameters()]))
        (expected, slopes), (found, own_slopes) = results
        for name in ("total", "action", "foresight"):
            assert getattr(expected, name) > 0, name
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        for ours_, theirs in zip(own_slopes, slopes, strict=True):
            assert (ours_ is None) == (theirs is None)
            assert ours_ is None or torch.equal(ours_, theirs)


def test_acting_from_latents_is_acting_from_frames(
    arm: Recorded, folder: Path, model: InternVLAA1, processor: Processor
) -> None:
    whole, ours = arm.prepared(), cached(arm, folder, model)
    slow = processor(observation_of(default_collate([whole[position] for position in (0, 7, 20)])))
    fast = latent_inputs(default_collate([ours[position] for position in (0, 7, 20)]), processor)
    noise = torch.randn(3, model.config.chunk, model.config.action_dim)
    assert torch.equal(model.act(fast, noise=noise), model.act(slow, noise=noise))


def test_loader_workers_read_the_same_latents(
    arm: Recorded, person: Recorded, folder: Path, model: InternVLAA1
) -> None:
    datasets = {"arm": cached(arm, folder, model), "person": cached(person, folder, model)}
    for alone, worked in zip(mixed_batches(datasets), mixed_batches(datasets, workers=2), strict=True):
        assert torch.equal(alone["latents"], worked["latents"])
    sent = pickle.loads(pickle.dumps(datasets["arm"]))  # noqa: S301 - what we have just written
    assert torch.equal(sent[3]["latents"], datasets["arm"][3]["latents"])
    assert not hasattr(sent, "foresight")  # a worker gets no copy of the tokenizer


def test_latents_may_be_stored_in_half_precision_and_are_then_the_rounded_ones(
    arm: Recorded, model: InternVLAA1, tmp_path: Path
) -> None:
    assert model.foresight is not None
    dataset = arm.prepared()
    cache = write_latents(
        tmp_path, dataset, model.foresight, model.config, dtype=torch.float16, batch=5, progress=False
    )
    sample = LatentDataset(dataset, cache)[4]
    assert sample["latents"].dtype == torch.float16
    # Batches of another size may be summed in another order before they are rounded.
    torch.testing.assert_close(sample["latents"][0], encoded(dataset[4], model)[0].half(), rtol=2e-3, atol=1e-4)


def test_latents_written_on_any_device_have_the_same_names_and_pass_for_each_other(
    arm: Recorded, folder: Path, model: InternVLAA1, tmp_path: Path, device: torch.device
) -> None:
    assert model.foresight is not None
    elsewhere = copy.deepcopy(model.foresight).to(device)
    there = write_latents(tmp_path, arm.prepared(), elsewhere, model.config, progress=False)
    here = LatentCache(folder, arm.prepared(), model.foresight, model.config, progress=False)
    assert [shard.key for shard in there.shards] == [shard.key for shard in here.shards]
    LatentCache(tmp_path, arm.prepared(), model.foresight, model.config, progress=False).verify()
    ours, theirs = there.read("wrist", 2, range(14)), here.read("wrist", 2, range(14))
    # Convolutions on a GPU may round to TensorFloat-32: 2^-11 a product.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=16 * 2**-11 * theirs.abs().max().item())
