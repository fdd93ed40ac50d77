"""A video that is cut, of another length, size or kind is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_set import TOP, read_number

from moteur.data import LeRobotSet

Copy = Callable[[Path], Path]


def edit_camera(root: Path, **changes: Any) -> None:  # noqa: ANN401
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][TOP] |= changes
    path.write_text(json.dumps(info))


def test_a_truncated_video_is_named(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    path = root / f"videos/{TOP}/chunk-000/file-001.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"file-001.mp4: expected a video, got a file that cannot be opened"):
        LeRobotSet(root)[8]


def test_a_video_with_too_few_frames_is_counted(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    folder = root / f"videos/{TOP}/chunk-000"
    (folder / "file-000.mp4").replace(folder / "file-001.mp4")
    with pytest.raises(ValueError, match=r"file-001.mp4: expected 12 frames by the episode index, got 7"):
        LeRobotSet(root)[8]


def test_a_video_with_too_many_frames_is_counted(recorded: Path, golden: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    folder = root / f"videos/{TOP}/chunk-000"
    shutil.copy(folder / "file-001.mp4", folder / "file-000.mp4")
    with pytest.raises(ValueError, match=r"file-000.mp4: expected 7 frames by the episode index, got 12"):
        LeRobotSet(root)[0]
    shutil.rmtree(root)
    root = copy_of(golden / "lerobot_v21/dataset")
    folder = root / "videos/chunk-000/observation.images.top"
    (folder / "episode_000002.mp4").replace(folder / "episode_000000.mp4")
    with pytest.raises(ValueError, match=r"episode_000000.mp4: expected 20 frames by the episode index, got 30"):
        LeRobotSet(root)[0]


def test_only_the_last_video_of_a_camera_may_hold_an_episode_that_was_cut_off(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    folder = root / f"videos/{TOP}/chunk-000"
    shutil.copy(folder / "file-001.mp4", folder / "file-003.mp4")
    assert read_number(LeRobotSet(root)[20][TOP]) == (1, 0)


def test_a_video_of_another_size_is_named(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    edit_camera(root, shape=[32, 64, 3])
    with pytest.raises(
        ValueError, match=r"file-000.mp4: expected pictures of \(32, 64\) as info.json says, got \(64, 64\)"
    ):
        LeRobotSet(root)[0]


def test_depth_is_not_read_as_colour(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    edit_camera(root, info={"video.is_depth_map": True})
    with pytest.raises(
        ValueError, match=r"file-000.mp4: expected colours, got depth, which is not read; leave .* out of keys"
    ):
        LeRobotSet(root)[0]
    assert "action" in LeRobotSet(root, keys=["action"])[0]


def test_a_codec_that_is_not_known_is_named(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    path = root / f"videos/{TOP}/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(ValueError, match=r"file-000.mp4: .*codec"):
        LeRobotSet(root)[0]
