"""Latents made from anything else are not found; what a name cannot hold is compared; damage is named."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import PIL
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_recordings import Recorded, encode, opened, record_arm, with_latents, written

from moteur.data import LatentCache, RobotDataset, latents
from moteur.data.lerobot import video
from moteur.data.lerobot.dataset import LeRobotSet


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode a shard."""
    monkeypatch.setattr(latents, "_SHARD_FRAMES", 10)


def change_last_byte(path: Path) -> None:
    """Decodes as before."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def touch(path: Path) -> None:
    """Change nothing but the time of change, by more than a file system may round to."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 2_000_000_001))


def keys(cache: LatentCache) -> set[str]:
    return {shard.key for shard in cache.shards}


def test_any_change_of_an_ingredient_is_a_miss(arm: Recorded, tmp_path: Path) -> None:
    written(tmp_path, arm.prepared()).verify()
    assert not opened(tmp_path, arm.prepared()).missing
    one_camera = Recorded(arm.root, replace(arm.robot, cameras=("head", None, None)))
    changed = {
        "the tokenizer": opened(tmp_path, arm.prepared(), digest="another"),
        "the stored dtype": opened(tmp_path, arm.prepared(), dtype=torch.float16),
        "the size of the frames": opened(tmp_path, arm.prepared(size=48)),
        "rounding of frames to bytes": opened(tmp_path, arm.prepared(images="float32")),
        "how frames are resized": opened(tmp_path, arm.prepared(convention="openpi")),
        "the cameras": opened(tmp_path, one_camera.prepared()),
    }
    for what, cache in changed.items():
        assert cache.missing == cache.shards, what
        with pytest.raises(FileNotFoundError, match=r"got none of 3 episodes of .* \(the first is 0\)"):
            cache.verify()


@pytest.mark.usefixtures("small_shards")
def test_one_changed_byte_of_one_video_makes_its_episode_a_miss_and_leaves_the_others(tmp_path: Path) -> None:
    recorded = record_arm(tmp_path / "set", 3)
    before = written(tmp_path / "latents", recorded.prepared())
    assert len(before.shards) == 3
    changed = sorted((recorded.root / "videos" / "wrist").rglob("*.mp4"))[1]
    status = changed.stat()
    change_last_byte(changed)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
    after = opened(tmp_path / "latents", recorded.prepared())
    assert [shard.episodes for shard in after.missing] == [(1,)]
    with pytest.raises(FileNotFoundError, match="got none of 1 episodes"):
        with_latents(recorded.prepared(), after)


@pytest.mark.usefixtures("small_shards")
def test_a_copy_of_the_set_and_a_part_of_it_find_the_same_latents(tmp_path: Path) -> None:
    recorded = record_arm(tmp_path / "set", 4)
    whole = written(tmp_path / "latents", recorded.prepared())
    recorded.root.rename(tmp_path / "elsewhere")
    moved = Recorded(tmp_path / "elsewhere", recorded.robot).prepared()
    assert keys(opened(tmp_path / "latents", moved)) == keys(whole)
    part = RobotDataset(tmp_path / "elsewhere", moved.transform, episodes=[2])
    assert keys(opened(tmp_path / "latents", part)) == {whole.shards[2].key}
    assert torch.equal(
        with_latents(part, opened(tmp_path / "latents", part))[0].latents,
        with_latents(moved, opened(tmp_path / "latents", moved))[11].latents,
    )


def test_a_video_that_changes_after_the_cache_was_opened_is_named(tmp_path: Path) -> None:
    recorded = record_arm(tmp_path / "set", 6)
    cache = written(tmp_path / "latents", recorded.prepared())
    changed = sorted((recorded.root / "videos" / "wrist").rglob("*.mp4"))[1]  # not the one whose pixels are compared
    touch(changed)
    with_latents(recorded.prepared(), cache)  # the same bytes: the same latents
    change_last_byte(changed)
    with pytest.raises(ValueError, match=rf"{changed.name}: expected the content it had when .*; open the cache again"):
        with_latents(recorded.prepared(), cache)
    changed.unlink()
    with pytest.raises(FileNotFoundError, match=changed.name):
        cache.verify()
    with pytest.raises(FileNotFoundError, match=changed.name):
        opened(tmp_path / "latents", recorded.prepared())


def changes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], None]]:
    libraries = av.library_versions

    def another(package: ModuleType) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(package, "__version__", "99")

    def library(name: str) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(av, "library_versions", {**libraries, name: (1, 2, 3)})

    def backend() -> None:
        monkeypatch.setattr(video, "available_backends", lambda: ("torchcodec", "pyav"))
        monkeypatch.setattr(latents, "version", {"torchcodec": "0.1"}.__getitem__)

    return {
        "PyAV": another(av),
        "FFmpeg's decoders": library("libavcodec"),
        "FFmpeg's colours": library("libswscale"),
        "the backend": backend,
        "Pillow": another(PIL),
    }


@pytest.mark.parametrize("what", ["PyAV", "FFmpeg's decoders", "FFmpeg's colours", "the backend", "Pillow"])
def test_other_software_to_decode_with_is_a_miss_for_what_it_decodes(
    arm: Recorded, person: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    concerned, other = (person, arm) if what == "Pillow" else (arm, person)  # tables hold pictures, files videos
    for recorded in (arm, person):
        written(tmp_path, recorded.prepared()).verify()
    changes(monkeypatch)[what]()
    cache = opened(tmp_path, concerned.prepared())
    assert cache.missing == cache.shards
    with pytest.raises(FileNotFoundError, match=r"made with these pictures, decoders, .* LatentCache.write"):
        cache.verify()
    assert not opened(tmp_path, other.prepared()).missing


def test_the_backend_of_a_dataset_is_that_of_its_latents(
    arm: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = written(tmp_path, arm.prepared())
    explicit = RobotDataset(arm.root, arm.prepared().transform, backend="pyav")
    with_latents(explicit, cache)  # the same one, whether asked for or found
    monkeypatch.setattr(latents, "version", lambda _: "0.1")
    explicit.source.backend = "torchcodec"
    with pytest.raises(ValueError, match=r"expected those of the dataset's decoders .*torchcodec.*got .*pyav"):
        cache.check(explicit.source, explicit.transform)


@pytest.mark.parametrize(
    ("name", "camera", "message"),
    [
        # The second of three episodes is looked at; it has two frames, and a file of its own.
        (
            "arm",
            "wrist",
            r"videos/wrist/.*\.mp4: frame 1: expected the pixels that the latents .*av",
        ),
        ("person", "eyes", r"data/.*\.parquet: frame 5: expected the pixels .*pillow"),
    ],
)
def test_a_file_that_decodes_to_other_pixels_is_named_with_its_frame(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    camera: str,
    message: str,
) -> None:
    dataset = request.getfixturevalue(name).prepared()
    written(tmp_path, dataset).verify()
    read = LeRobotSet.__getitem__

    def one_bit(self: LeRobotSet, position: int) -> dict[str, Any]:
        item = read(self, position)
        pictures = item[camera].clone()
        pictures[..., 0, 0, 0] ^= 1
        return item | {camera: pictures}

    monkeypatch.setattr(LeRobotSet, "__getitem__", one_bit)
    with pytest.raises(ValueError, match=message):
        with_latents(dataset, opened(tmp_path, dataset))


def test_code_that_computes_something_else_is_noticed_by_the_probe(arm: Recorded, tmp_path: Path) -> None:
    written(tmp_path, arm.prepared())
    with pytest.raises(ValueError, match=r"expected a probe within rounding .* of what this code computes, got a diff"):
        opened(tmp_path, arm.prepared(), encode=lambda frames: encode(frames.roll(1, dims=-1))).verify()
    opened(tmp_path, arm.prepared(), encode=lambda frames: encode(frames) * (1 + 1e-4)).verify()


def test_a_probe_of_another_shape_is_named_with_both(arm: Recorded, tmp_path: Path) -> None:
    cache = written(tmp_path, arm.prepared())
    path = cache.path(cache.shards[0])
    save_file(load_file(path) | {"probe": torch.zeros(2, 3)}, path)
    with pytest.raises(ValueError, match=rf"{path.name}: expected a probe of shape \(4, 4, 4\), got \(2, 3\)"):
        opened(tmp_path, arm.prepared()).verify()


def test_a_truncated_file_and_a_missing_one_are_named(arm: Recorded, tmp_path: Path) -> None:
    cache = written(tmp_path, arm.prepared())
    path = cache.path(cache.shards[0])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{path.name}: expected a file of latents, .*; delete it and write"):
        opened(tmp_path, arm.prepared()).verify()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        opened(tmp_path, arm.prepared()).read("head", 0, [0])
