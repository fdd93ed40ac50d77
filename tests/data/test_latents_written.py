"""What writing leaves in the folder: complete files, also of writers that were killed or shared the work."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from toy_recordings import Recorded, encode, opened, record_arm, written

from moteur.data import latents

TESTS = Path(__file__).parents[1]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode a shard."""
    monkeypatch.setattr(latents, "_SHARD_FRAMES", 10)


def test_a_file_holds_the_latents_the_probe_and_what_it_was_made_from(arm: Recorded, tmp_path: Path) -> None:
    cache = written(str(tmp_path), arm.prepared())  # pyright: ignore[reportArgumentType] - a string is a path
    path = cache.path(cache.shards[0])
    with safe_open(path, "pt") as file:
        ingredients = json.loads(file.metadata()["ingredients"])
        assert set(file.keys()) == {"probe", *(f"{place}/{name}" for place in range(3) for name in ("head", "wrist"))}
    assert ingredients == json.loads(json.dumps(cache.shards[0].ingredients))
    assert ingredients["tokenizer"] == "toy"
    assert ingredients["dtype"] == "torch.float32"
    assert ingredients["frames"] == {"size": 32, "images": "uint8"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_batch_size_changes_nothing(arm: Recorded, tmp_path: Path) -> None:
    for size in (1, 5, 100):
        cache = written(tmp_path / str(size), arm.prepared(), batch_size=size)
        assert torch.equal(
            cache.read("wrist", 2, range(14)), opened(tmp_path / "1", arm.prepared()).read("wrist", 2, range(14))
        )


def test_latents_of_a_video_that_changes_while_they_are_written_are_not_kept(tmp_path: Path) -> None:
    recorded = record_arm(tmp_path / "set", 7)
    video = min((recorded.root / "videos" / "head").rglob("*.mp4"))

    def changing(frames: Tensor) -> Tensor:
        content = bytearray(video.read_bytes())
        content[-1] = (content[-1] + 1) % 256
        video.write_bytes(content)
        return encode(frames)

    with pytest.raises(ValueError, match=rf"{video.name}: expected the content it had when"):
        written(tmp_path / "latents", recorded.prepared(), encode=changing)
    assert not list((tmp_path / "latents").iterdir())


WRITER = """
import os, signal, sys
from pathlib import Path
from toy_recordings import Recorded, written
from moteur.data import Robot, latents

latents._SHARD_FRAMES = 10
count, replace = 0, Path.replace

def cut(draft, path):
    global count
    count += 1
    if count == 2:
        os.truncate(draft, os.path.getsize(draft) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(draft, path)

Path.replace = cut
written(sys.argv[3], Recorded(Path(sys.argv[1]), Robot.load(Path(sys.argv[2]))).prepared())
"""


@pytest.mark.usefixtures("small_shards")
def test_a_writer_killed_in_the_middle_of_a_file_leaves_whole_ones_and_the_next_one_goes_on(
    arm: Recorded, tmp_path: Path
) -> None:
    arm.robot.save(tmp_path / "arm.json")
    child = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", WRITER, str(arm.root), str(tmp_path / "arm.json"), str(tmp_path / "latents")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    left = opened(tmp_path / "latents", arm.prepared())
    assert [shard.episodes for shard in left.missing] == [(1,), (2,)]
    (draft,) = (tmp_path / "latents").glob("*.part")
    whole = left.path(left.shards[0])
    before = whole.stat().st_ino
    written(tmp_path / "latents", arm.prepared()).verify()
    assert whole.stat().st_ino == before  # not written again
    assert not draft.exists()


def test_a_file_is_flushed_to_the_disk_before_it_has_its_name(
    arm: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    fsync, replace = os.fsync, Path.replace

    def noting(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking(draft: Path, path: Path) -> Path:
        assert flushed[-1] == draft.stat().st_ino
        return replace(draft, path)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "replace", checking)
    written(tmp_path, arm.prepared())
    assert flushed[-1] == tmp_path.stat().st_ino


@pytest.mark.usefixtures("small_shards")
def test_ranks_share_the_work_and_leave_a_complete_cache(arm: Recorded, tmp_path: Path) -> None:
    for rank, count in ((0, 2), (1, 3)):
        written(tmp_path, arm.prepared(), rank=rank, ranks=2)
        assert len(list(tmp_path.glob("*.safetensors"))) == count
    opened(tmp_path, arm.prepared()).verify()
    with pytest.raises(ValueError, match=r"rank: expected a number in \[0, 2\), got 2"):
        written(tmp_path, arm.prepared(), rank=2, ranks=2)
