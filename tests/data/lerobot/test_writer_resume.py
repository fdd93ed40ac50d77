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

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot.table import task_table

Copy = Callable[[Path], Path]
OWN = {"fps": FPS, "features": FEATURES, "robot_type": "toy", "codec": "libx264"}
WITHOUT = {key: feature for key, feature in FEATURES.items() if key != "note"}


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def refused(root: Path, message: str, **changes: Any) -> None:  # noqa: ANN401
    before = state_of(root)
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(root, **(OWN | changes), resume=True)
    assert state_of(root) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 11}, r"info.json: fps: expected 11 to continue the set, got 10"),
        ({"robot_type": "other"}, r"info.json: robot_type: expected 'other' to continue the set, got 'toy'"),
        ({"features": WITHOUT}, r"features: expected those of .*info.json, got \['note'\] missing and \[\] unknown"),
        (
            {"features": WITHOUT | {"force": Feature("float32", (1,))}},
            r"features: expected those of .*info.json, got \['note'\] missing and \['force'\] unknown",
        ),
        (
            {"features": FEATURES | {"matrix": Feature("float32", (2, 3))}},
            r"info.json: features\['matrix'\].dtype: expected 'float32' to continue the set, got 'float64'",
        ),
        (
            {"features": FEATURES | {"matrix": Feature("float64", (3, 2))}},
            r"info.json: features\['matrix'\].shape: expected \(3, 2\) to continue the set, got \(2, 3\)",
        ),
        (
            {"features": FEATURES | {"action": Feature("float32", (3,), ["z", "y", "x"])}},
            r"features\['action'\].names: expected \('z', 'y', 'x'\) to .*, got \('x', 'y', 'z'\)",
        ),
        (
            {"features": FEATURES | {SIDE: replace(FEATURES[SIDE], dtype="video")}},
            r"features\['observation.images.side'\].dtype: expected 'video' to .*, got 'image'",
        ),
        ({"codec": "libsvtav1"}, r"images.top'\].video.codec: expected 'av1' to continue the set, got 'h264'"),
        ({"gop": 30}, r"images.top'\].video.g: expected 30 to continue the set, got 2"),
    ],
)
def test_arguments_that_differ_from_the_set_are_named(recorded: Path, changes: dict[str, Any], message: str) -> None:
    refused(recorded, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks_size": 500}, r"info.json: chunks_size: expected 1000 to continue the set, got 500"),
        (
            {"data_path": "frames/{chunk_index:03d}/{file_index:03d}.parquet"},
            r"info.json: data_path: expected 'data/chunk-.*' to continue the set, got 'frames/",
        ),
        (
            {"video_path": "{video_key}/{chunk_index:03d}/{file_index:03d}.mp4"},
            r"info.json: video_path: expected 'videos/.*' to continue the set, got '.video_key./",
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
    refused(root, r"features\['timestamp'\].dtype: expected 'float32' to continue the set, got 'float64'")


@pytest.mark.parametrize("texts", [["pick", "pick"], ["pick", "place", "pick"]])
def test_tasks_whose_numbers_would_change_are_refused(recorded: Path, copy_of: Copy, texts: list[str]) -> None:
    root = copy_of(recorded)
    pq.write_table(task_table(texts), root / "meta/tasks.parquet")
    refused(root, rf"tasks.parquet: expected task_index 0 to {len(texts) - 1} and texts once, got")


def test_task_numbers_with_gaps_are_refused(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    pq.write_table(task_table(["pick", "place", "push"]).take([0, 2]), root / "meta/tasks.parquet")
    refused(root, r"tasks.parquet: expected task_index 0 to 1 and texts once, got")


def test_a_v21_set_is_refused(golden: Path) -> None:
    refused(golden / "lerobot_v21/dataset", r"codebase_version: expected 'v3.0' to continue the set, got 'v2.1'")


def test_names_and_robot_type_that_are_not_given_are_kept(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    features = {key: replace(feature, names=None) for key, feature in FEATURES.items()}
    with LeRobotWriter(root, fps=FPS, features=features, codec="libx264", resume=True) as writer:
        writer.add(frame(3, 0), task(3))
        writer.save_episode()
    before, after = LeRobotSet(recorded).info, LeRobotSet(root).info
    assert after.robot_type == "toy"
    assert after.features == before.features
    assert TOP in after.features


def test_a_set_that_is_opened_and_closed_again_keeps_its_frames_and_statistics(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    LeRobotWriter(root, **OWN, resume=True).close()
    before, after = (json.loads((folder / "meta/stats.json").read_text()) for folder in (recorded, root))
    assert set(after) == set(before)
    for name, value in before["matrix"].items():
        np.testing.assert_allclose(after["matrix"][name], value, rtol=1e-12, atol=1e-12, err_msg=name)
    assert after[TOP]["count"] == before[TOP]["count"]
    assert len(LeRobotSet(root)) == len(LeRobotSet(recorded))
