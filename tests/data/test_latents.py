"""A sample with cached latents holds what encoding its frames gives; latents of other frames are refused."""

import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from toy_recordings import TIMES, Recorded, encode, opened, with_latents, written

from moteur.data import RobotDataset, Sample
from moteur.sampling import DatasetPool, Sampler, WeightedOrder


@pytest.fixture(scope="module")
def folder(arm: Recorded, person: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the latents of both sets."""
    made = tmp_path_factory.mktemp("latents")
    for recorded in (arm, person):
        written(made, recorded.prepared())
    return made


def cached(recorded: Recorded, folder: Path, **window: Any) -> RobotDataset:  # noqa: ANN401
    dataset = recorded.prepared(**window)
    return with_latents(dataset, opened(folder, dataset))


def encoded(frames: Tensor) -> Tensor:
    return encode(frames.flatten(0, 1).float() / 255).unflatten(0, frames.shape[:2])


@pytest.mark.parametrize(
    "window",
    [{"offsets": TIMES}, {"offsets": (-15, 0, 15)}, {"offsets": (-1, 0, 7)}, {"seconds": (-0.3, 0.0, 0.3)}],
    ids=["offsets", "longer than the episodes", "uneven", "seconds"],
)
def test_every_latent_of_every_sample_is_the_encoded_frame_and_marked_where_it_is_no_real_one(
    arm: Recorded, person: Recorded, folder: Path, window: dict[str, Any]
) -> None:
    for recorded in (arm, person):
        whole, ours = recorded.prepared(**window), cached(recorded, folder, **window)
        assert len(ours) == len(whole)
        assert ours.transform.window == whole.transform.window  # what a checkpoint keeps
        for position in range(len(whole)):
            sample, expected = ours[position], whole[position]
            assert torch.equal(sample.frames, expected.frames[:, 1:2])
            latents, (found, future) = encoded(expected.frames), (sample.latents, sample.future_latents)
            assert found is not None
            assert future is not None
            for view, present in enumerate(expected.view_valid):
                # A missing camera's frames are white, its latents zero, and both are masked.
                assert torch.equal(found[view], latents[view, :2] if present else torch.zeros_like(found[view]))
                assert torch.equal(future[view], latents[view, 2] if present else torch.zeros_like(future[view]))
            for field in fields(Sample):
                if field.name not in ("frames", "latents", "future_latents"):
                    value, other = getattr(sample, field.name), getattr(expected, field.name)
                    assert torch.equal(value, other) if isinstance(other, Tensor) else value == other, field.name


def test_loader_workers_read_the_same_latents(arm: Recorded, person: Recorded, folder: Path) -> None:
    datasets = {"arm": cached(arm, folder), "person": cached(person, folder)}
    order = WeightedOrder({name: len(data) for name, data in datasets.items()}, {"arm": 0.6, "person": 0.4}, draws=12)

    def batches(workers: int) -> list[Sample]:
        options: dict[str, Any] = {"batch_size": 6, "sampler": Sampler(order), "collate_fn": Sample.stack}
        if workers:  # forking is unsafe once threads are in use
            options |= {"num_workers": workers, "multiprocessing_context": "spawn"}
        return list(DataLoader(DatasetPool(datasets), **options))  # pyright: ignore[reportArgumentType]

    for alone, worked in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone.latents, worked.latents)
    sent = pickle.loads(pickle.dumps(datasets["arm"]))  # noqa: S301 - what we have just written
    assert torch.equal(sent[3].latents, datasets["arm"][3].latents)
    assert encode not in vars(sent.latents).values()  # a worker gets no copy of the tokenizer


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_latents_may_be_stored_in_half_precision_and_are_then_the_rounded_ones(
    arm: Recorded, tmp_path: Path, stored: torch.dtype
) -> None:
    dataset = arm.prepared()
    sample = with_latents(dataset, written(tmp_path, dataset, dtype=stored, batch_size=5))[4]
    assert torch.equal(sample.latents[0], encoded(dataset[4].frames)[0, :2].to(stored))


def test_the_dtype_of_the_latents_is_that_of_the_tokenizer_unless_another_is_asked_for(
    arm: Recorded, tmp_path: Path
) -> None:
    assert opened(tmp_path, arm.prepared()).dtype == torch.float32
    assert opened(tmp_path, arm.prepared(), encode=lambda frames: encode(frames).half()).dtype == torch.float16


@pytest.mark.parametrize("window", [{"offsets": (0,)}, {"seconds": (0.0,)}])
def test_a_window_of_the_present_alone_is_refused(arm: Recorded, folder: Path, window: dict[str, Any]) -> None:
    dataset = arm.prepared(**window)
    message = r"latents: expected a window of history, present and future, got Window\("
    with pytest.raises(ValueError, match=message):
        with_latents(dataset, opened(folder, dataset))


def test_latents_of_other_frames_than_the_datasets_are_refused(arm: Recorded, person: Recorded, folder: Path) -> None:
    whole = arm.prepared()
    cache = opened(folder, whole)
    with pytest.raises(ValueError, match=r"latents: expected those of the dataset's root .*person.*, got .*arm"):
        with_latents(person.prepared(), cache)
    with pytest.raises(ValueError, match=r"the dataset's frames .*'float32'}, got .*'uint8'"):
        with_latents(arm.prepared(images="float32"), cache)
    last = RobotDataset(arm.root, whole.transform, episodes=[2])
    part = opened(folder, last)
    part._place = {}
    with pytest.raises(ValueError, match=r"the dataset's episodes \[2\], got \[\]"):
        with_latents(last, part)
    one = Recorded(arm.root, replace(arm.robot, cameras=("head", None, None)))
    narrow = opened(folder, one.prepared())
    with pytest.raises(ValueError, match=r"the dataset's cameras \['head', 'wrist'\], got \['head'\]"):
        with_latents(whole, narrow)


def test_a_cache_and_a_dataset_say_what_they_hold(arm: Recorded, folder: Path, tmp_path: Path) -> None:
    dataset = arm.prepared()
    cache = opened(str(folder), dataset)  # pyright: ignore[reportArgumentType] - a string is a path
    what = f"3 episodes of '{arm.root}', cameras head, wrist, torch.float32"
    assert repr(cache) == f"LatentCache('{folder}': {what}, 0 of 1 files missing)"
    told = f"{repr(dataset)[:-1]}, latents at offsets (-3, 0, 3), {cache!r})"
    assert repr(with_latents(dataset, cache)) == told
    assert repr(opened(tmp_path, dataset)) == f"LatentCache('{tmp_path}': {what}, 1 of 1 files missing)"
