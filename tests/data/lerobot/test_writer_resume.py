"""A set is continued only by what it says of itself; anything else is refused by name, and nothing is touched."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_set import FEATURES, FPS, SIDE, TOP, frame, task

from moteur.data.lerobot import Feature, LeRobotSet, SetWriter
from moteur.data.lerobot.columns import task_table

Copy = Callable[[Path], Path]
OWN = {"fps": FPS, "features": FEATURES, "robot_type": "toy", "codec": "libx264"}
WITHOUT = {key: feature for key, feature in FEATURES.items() if key != "note"}


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def refused(root: Path, message: str, **changes: Any) -> None:  # noqa: ANN401
    before = state_of(root)
    with pytest.raises(ValueError, match=message):
        SetWriter(root, **(OWN | changes), resume=True)
    assert state_of(root) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 11}, r"info.json: fps is 10, the argument fps is 11"),
        ({"robot_type": "other"}, r"info.json: robot_type is 'toy', the argument robot_type is 'other'"),
        ({"features": WITHOUT}, r"features must be those of .*info.json; missing \['note'\], unknown \[\]"),
        (
            {"features": WITHOUT | {"force": Feature("float32", (1,))}},
            r"features must be those of .*info.json; missing \['note'\], unknown \['force'\]",
        ),
        (
            {"features": FEATURES | {"matrix": Feature("float32", (2, 3))}},
            r"info.json: features\['matrix'\]: dtype is 'float64', what would be recorded has 'float32'",
        ),
        (
            {"features": FEATURES | {"matrix": Feature("float64", (3, 2))}},
            r"info.json: features\['matrix'\]: shape is \(2, 3\), what would be recorded has \(3, 2\)",
        ),
        (
            {"features": FEATURES | {"action": Feature("float32", (3,), ["z", "y", "x"])}},
            r"features\['action'\]: names is \('x', 'y', 'z'\), what would be recorded has \('z', 'y', 'x'\)",
        ),
        (
            {"features": FEATURES | {SIDE: replace(FEATURES[SIDE], dtype="video")}},
            r"features\['observation.images.side'\]: dtype is 'image', what would be recorded has 'video'",
        ),
        ({"codec": "libsvtav1"}, r"images.top'\]: video.codec is 'h264', what would be recorded has 'av1'"),
        ({"gop": 30}, r"images.top'\]: video.g is 2, what would be recorded has 30"),
    ],
)
def test_arguments_that_differ_from_the_set_are_named(recorded: Path, changes: dict[str, Any], message: str) -> None:
    refused(recorded, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks_size": 500}, r"info.json: chunks_size is 500, only sets with 1000 can be continued"),
        (
            {"data_path": "frames/{chunk_index:03d}/{file_index:03d}.parquet"},
            r"info.json: data_path is 'frames/.*', only sets with 'data/chunk-.*' can be continued",
        ),
        (
            {"video_path": "{video_key}/{chunk_index:03d}/{file_index:03d}.mp4"},
            r"info.json: video_path is '.video_key./.*', only sets with 'videos/.*' can be continued",
        ),
    ],
)
def test_a_set_with_files_elsewhere_is_refused(
    recorded: Path, copy_of: Copy, changes: dict[str, Any], message: str
) -> None:
    root = copy_of(recorded)
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(root, message)


def test_a_bookkeeping_column_of_another_type_is_refused(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["timestamp"]["dtype"] = "float64"
    (root / "meta/info.json").write_text(json.dumps(info))
    refused(root, r"features\['timestamp'\]: dtype is 'float64', what would be recorded has 'float32'")


@pytest.mark.parametrize("texts", [["pick", "pick"], ["pick", "place", "pick"]])
def test_tasks_whose_numbers_would_change_are_refused(recorded: Path, copy_of: Copy, texts: list[str]) -> None:
    root = copy_of(recorded)
    pq.write_table(task_table(texts), root / "meta/tasks.parquet")
    refused(root, rf"meta: task_index must be 0 to {len(texts) - 1}, each with a text of its own")


def test_task_numbers_with_gaps_are_refused(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    pq.write_table(task_table(["pick", "place", "push"]).take([0, 2]), root / "meta/tasks.parquet")
    refused(root, r"meta: task_index must be 0 to 1, each with a text of its own")


def test_a_v21_set_is_refused(golden: Path) -> None:
    refused(golden / "lerobot_v21/dataset", r"is a v2.1 set; only v3.0 can be continued")


def test_names_and_robot_type_that_are_not_given_are_kept(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    features = {key: replace(feature, names=None) for key, feature in FEATURES.items()}
    with SetWriter(root, fps=FPS, features=features, codec="libx264", resume=True) as writer:
        writer.add(frame(3, 0), task(3))
        writer.save_episode()
    before, after = LeRobotSet(recorded).info, LeRobotSet(root).info
    assert after.robot_type == "toy"
    assert after.features == before.features
    assert TOP in after.features


def test_a_set_that_is_opened_and_closed_again_keeps_its_frames_and_statistics(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    SetWriter(root, **OWN, resume=True).close()
    before, after = (json.loads((folder / "meta/stats.json").read_text()) for folder in (recorded, root))
    assert set(after) == set(before)
    for name, value in before["matrix"].items():
        np.testing.assert_allclose(after["matrix"][name], value, rtol=1e-12, atol=1e-12, err_msg=name)
    assert after[TOP]["count"] == before[TOP]["count"]
    assert len(LeRobotSet(root)) == len(LeRobotSet(recorded))
