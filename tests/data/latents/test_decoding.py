"""Latents are those of the pixels that are decoded here: other software is a miss, other pixels are an error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import av
import PIL
import pytest
from torch import Tensor

from moteur.data import RobotDataset
from moteur.data.latents import LatentCache, LatentDataset, decoding, write_latents
from moteur.data.lerobot import video
from moteur.data.lerobot.table import TableFile
from moteur.recipes import InternVLAA1

from .conftest import Recorded


def opened(folder: Path, dataset: RobotDataset, model: InternVLAA1) -> LatentCache:
    assert model.foresight is not None
    return LatentCache(folder, dataset, model.foresight, model.config, progress=False)


def written(folder: Path, recorded: Recorded, model: InternVLAA1) -> LatentCache:
    assert model.foresight is not None
    return write_latents(folder, recorded.prepared(), model.foresight, model.config, progress=False)


def changes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    libraries = av.library_versions

    def another(package: ModuleType) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(package, "__version__", "99")

    def library(name: str) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(av, "library_versions", {**libraries, name: (1, 2, 3)})

    def backend() -> None:
        monkeypatch.setattr(video, "available_backends", lambda: ("torchcodec", "pyav"))
        monkeypatch.setattr(decoding, "version", {"torchcodec": "0.1"}.__getitem__)

    return {
        "PyAV": another(av),
        "FFmpeg's decoders": library("libavcodec"),
        "FFmpeg's colours": library("libswscale"),
        "the backend": backend,
        "Pillow": another(PIL),
    }


@pytest.mark.parametrize("what", ["PyAV", "FFmpeg's decoders", "FFmpeg's colours", "the backend", "Pillow"])
def test_other_software_to_decode_with_is_a_miss_for_what_it_decodes(
    arm: Recorded, person: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    concerned, other = (person, arm) if what == "Pillow" else (arm, person)  # tables hold pictures, files videos
    for recorded in (arm, person):
        written(tmp_path, recorded, model).verify()
    changes(monkeypatch)[what]()
    cache = opened(tmp_path, concerned.prepared(), model)
    assert cache.missing == cache.shards
    with pytest.raises(FileNotFoundError, match=r"made with these pictures, decoders, .* write_latents"):
        cache.verify()
    assert not opened(tmp_path, other.prepared(), model).missing


def test_a_video_that_decodes_to_other_pixels_is_named_with_its_frame(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, arm, model).verify()
    frames = video.PyavDecoder.frames_at

    def one_bit(self: video.PyavDecoder, indices: Sequence[int]) -> Tensor:
        pictures = frames(self, indices).clone()
        pictures[:, 0, 0, 0] ^= "wrist" in str(self.path)
        return pictures

    monkeypatch.setattr(video.PyavDecoder, "frames_at", one_bit)
    dataset = arm.prepared()
    # The second of three episodes has two frames, and a file of its own.
    with pytest.raises(ValueError, match=r"videos/wrist/.*\.mp4: frame 1 decodes to other pixels here than when .*av"):
        LatentDataset(dataset, opened(tmp_path, dataset, model))


def test_a_table_whose_pictures_decode_otherwise_is_named_with_the_row(
    person: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, person, model).verify()
    picture = TableFile._picture
    monkeypatch.setattr(TableFile, "_picture", lambda *arguments: picture(*arguments) ^ 1)
    with pytest.raises(ValueError, match=r"data/.*\.parquet: frame 5 decodes to other pixels here .*pillow"):
        opened(tmp_path, person.prepared(), model).verify()


def test_the_backend_of_a_dataset_is_that_of_its_latents(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = written(tmp_path, arm, model)
    explicit = RobotDataset(arm.root, arm.prepared().preparation, backend="pyav")
    LatentDataset(explicit, cache)  # the same one, whether asked for or found
    monkeypatch.setattr(decoding, "version", lambda _: "0.1")
    explicit.source.backend = "torchcodec"
    with pytest.raises(ValueError, match=r"cache: expected latents of the dataset's decoders .*torchcodec.* of .*pyav"):
        LatentDataset(explicit, cache)
