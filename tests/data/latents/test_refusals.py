"""What a `LatentDataset` cannot serve is refused by name: other windows, and latents of other frames."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moteur.data import RobotDataset
from moteur.data.latents import LatentCache, LatentDataset, write_latents
from moteur.recipes import InternVLAA1

from .conftest import Recorded


@pytest.fixture(scope="module")
def folder(arm: Recorded, model: InternVLAA1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of both of the arm's cameras."""
    assert model.foresight is not None
    made = tmp_path_factory.mktemp("latents")
    write_latents(made, arm.prepared(), model.foresight, model.config, progress=False)
    return made


def opened(folder: Path, dataset: RobotDataset, model: InternVLAA1) -> LatentCache:
    assert model.foresight is not None
    return LatentCache(folder, dataset, model.foresight, model.config, progress=False)


@pytest.mark.parametrize("window", [{"frames": (0,)}, {"seconds": (0.0,)}])
def test_a_window_of_the_present_alone_is_refused(
    arm: Recorded, folder: Path, model: InternVLAA1, window: dict[str, Any]
) -> None:
    dataset = arm.prepared(**window)
    message = r"dataset\.preparation\.window: expected a time of history, the present 0, .* got frames \(0,\) \(Window"
    with pytest.raises(ValueError, match=message):
        LatentDataset(dataset, opened(folder, dataset, model))


def test_latents_of_other_frames_than_the_datasets_are_refused(
    arm: Recorded, person: Recorded, folder: Path, model: InternVLAA1
) -> None:
    whole = arm.prepared()
    cache = opened(folder, whole, model)
    with pytest.raises(ValueError, match=r"cache: expected latents of the dataset's root .*person.*, got .*arm"):
        LatentDataset(person.prepared(), cache)
    with pytest.raises(ValueError, match=r"the dataset's frames .*'float32'}, got those of .*'uint8'"):
        LatentDataset(arm.prepared(images="float32"), cache)
    last = RobotDataset(arm.root, whole.preparation, episodes=[2])
    part = opened(folder, last, model)
    part.shards, part._place = [], {}
    with pytest.raises(ValueError, match=r"the dataset's episodes \[2\], got those of \[\]"):
        LatentDataset(last, part)
    one = Recorded(arm.root, replace(arm.robot, cameras=("head", None, None)))
    narrow = opened(folder, one.prepared(), model)
    with pytest.raises(ValueError, match=r"the dataset's cameras \['head', 'wrist'\], got those of \['head'\]"):
        LatentDataset(whole, narrow)


def test_a_probe_of_another_shape_is_named_with_both(arm: Recorded, model: InternVLAA1, tmp_path: Path) -> None:
    assert model.foresight is not None
    cache = write_latents(tmp_path, arm.prepared(), model.foresight, model.config, progress=False)
    path = cache.path(cache.shards[0])
    tensors = load_file(path)
    save_file({**tensors, "probe": torch.zeros(2, 3)}, path)
    with pytest.raises(ValueError, match=rf"{path.name}: expected a probe of shape \(\d+, 4, 4\), got \(2, 3\)"):
        opened(tmp_path, arm.prepared(), model).verify()
