"""Pictures that change after they were named are noticed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moteur.data.latents import LatentCache, LatentDataset, write, write_latents
from moteur.recipes import InternVLAA1

from .conftest import Recorded


def touch(video: Path) -> None:
    """Change nothing but the time of change, by one nanosecond more than a file system may round to."""
    status = video.stat()
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns + 2_000_000_001))


def test_a_video_that_changes_after_the_cache_was_opened_is_named(
    record: Callable[[Path, int], Recorded], model: InternVLAA1, tmp_path: Path
) -> None:
    recorded = record(tmp_path / "set", 6)
    assert model.foresight is not None
    write_latents(tmp_path / "latents", recorded.prepared(), model.foresight, model.config, progress=False)
    cache = LatentCache(tmp_path / "latents", recorded.prepared(), model.foresight, model.config, progress=False)
    LatentDataset(recorded.prepared(), cache)
    video = sorted((recorded.root / "videos" / "wrist").rglob("*.mp4"))[1]  # not the one that is looked at
    touch(video)
    with pytest.raises(ValueError, match=rf"{video.name}: expected the file of \(\d+, \d+\), .* got \(\d+, \d+\)"):
        LatentDataset(recorded.prepared(), cache)
    again = LatentCache(tmp_path / "latents", recorded.prepared(), model.foresight, model.config, progress=False)
    LatentDataset(recorded.prepared(), again)  # the same bytes: the same latents
    video.unlink()
    with pytest.raises(ValueError, match=rf"{video.name}: expected the file of .* got None .*; open the cache again"):
        again.verify()


def test_latents_of_a_video_that_changes_while_they_are_written_are_not_kept(
    record: Callable[[Path, int], Recorded], model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record(tmp_path / "set", 7)
    assert model.foresight is not None
    video = min((recorded.root / "videos" / "head").rglob("*.mp4"))
    encoded = write.encoded

    def changing(*arguments: Any) -> Any:  # noqa: ANN401 - as it is called
        touch(video)
        return encoded(*arguments)

    monkeypatch.setattr(write, "encoded", changing)
    with pytest.raises(ValueError, match=rf"{video.name}: expected the file of"):
        write_latents(tmp_path / "latents", recorded.prepared(), model.foresight, model.config, progress=False)
    assert not list((tmp_path / "latents").iterdir())
