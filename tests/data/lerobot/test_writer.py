"""What is written is what is read, in LeRobot's layout."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_set import FEATURES, FPS, LENGTHS, SIDE, TOP, frame, numbered_picture, read_number, record, task

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot.resume import following


def episode_rows(root: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob("meta/episodes/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_info_counts_and_describes_the_set(recorded: Path) -> None:
    info = json.loads((recorded / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "toy",
        "total_episodes": 4,
        "total_frames": sum(LENGTHS),
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": "0:4"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}
    assert features["index"] == {"dtype": "int64", "shape": [1], "names": None}
    assert features[TOP]["names"] == ["height", "width", "channels"]
    assert features[TOP]["info"]["video.codec"] == "h264"
    assert features[TOP]["info"]["video.g"] == 2


def test_the_layout_is_the_one_lerobot_wrote_for_the_golden_set(golden: Path, recorded: Path) -> None:
    theirs = next((golden / "lerobot_v30/dataset").glob("meta/episodes/*/*.parquet"))
    ours = next(recorded.glob("meta/episodes/*/*.parquet"))

    def columns(path: Path) -> dict[str, str]:
        camera = re.compile(r"observation\.images\.\w+")
        return {camera.sub("CAMERA", field.name): str(field.type) for field in pq.read_schema(path)}

    expected, found = columns(theirs), columns(ours)
    assert {name: kind for name, kind in found.items() if name in expected} == expected
    extra = {name.split("/")[1] for name in set(found) - set(expected)}
    assert extra == {"gripper", "matrix", "success"}
    data = pq.read_schema(next((golden / "lerobot_v30/dataset").glob("data/*/*.parquet")))
    written = pq.read_schema(next(recorded.glob("data/*/*.parquet")))
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert written.field(key).type == data.field(key).type
    assert str(written.field("action").type) == str(data.field("action").type).replace("14", "3")


def test_episode_statistics_equal_numpy_and_pictures_count_every_pixel(recorded: Path) -> None:
    rows = episode_rows(recorded)
    for episode, row in enumerate(rows):
        frames = [frame(episode, step) for step in range(LENGTHS[episode])]
        for key in ("observation.state", "matrix"):
            values = np.stack([value[key] for value in frames]).astype(np.float64)
            expected = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
            expected |= {f"q{level:02d}": np.quantile(values, level / 100, axis=0) for level in (1, 10, 50, 90, 99)}
            for name, value in expected.items():
                np.testing.assert_allclose(row[f"stats/{key}/{name}"], value, rtol=1e-12, atol=1e-12)
            assert row[f"stats/{key}/count"] == [LENGTHS[episode]]
        pixels = np.stack([value[SIDE] for value in frames]).reshape(-1, 3) / 255
        expected = {"mean": pixels.mean(0), "std": pixels.std(0), "min": pixels.min(0), "max": pixels.max(0)}
        expected |= {f"q{level:02d}": np.quantile(pixels, level / 100, axis=0) for level in (1, 10, 50, 90, 99)}
        for name, value in expected.items():
            np.testing.assert_allclose(
                row[f"stats/{SIDE}/{name}"], value[:, None, None], rtol=1e-12, atol=1e-12, err_msg=name
            )


def test_the_whole_sets_statistics_are_those_of_all_frames_at_once(recorded: Path) -> None:
    stats = json.loads((recorded / "meta/stats.json").read_text())
    values = np.stack(
        [frame(episode, step)["matrix"] for episode, length in enumerate(LENGTHS) for step in range(length)]
    )
    np.testing.assert_allclose(stats["matrix"]["mean"], values.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(stats["matrix"]["std"], values.std(0), rtol=1e-12)
    np.testing.assert_allclose(stats["matrix"]["q90"], np.quantile(values, 0.9, axis=0), rtol=1e-12)
    assert stats["matrix"]["count"] == stats[SIDE]["count"] == [sum(LENGTHS)]
    assert set(stats) == set(FEATURES) - {"note"} | {
        "timestamp",
        "frame_index",
        "episode_index",
        "index",
        "task_index",
    }
    assert np.shape(stats[SIDE]["q01"]) == (3, 1, 1)


def test_a_set_continued_later_equals_one_recorded_at_once(recorded: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    record(root, LENGTHS[:2])
    with LeRobotWriter(root, fps=FPS, features=FEATURES, resume=True, codec="libx264") as writer:
        for episode in (2, 3):
            for step in range(LENGTHS[episode]):
                writer.add(frame(episode, step), task(episode))
            writer.save_episode()
    expected, found = LeRobotSet(recorded), LeRobotSet(root)
    assert len(found) == len(expected)
    for position in range(len(expected)):
        for key, value in expected[position].items():
            assert np.array_equal(found[position][key], value), (position, key)
    ours, theirs = (json.loads((folder / "meta/stats.json").read_text()) for folder in (root, recorded))
    for key in ("matrix", "action", "index"):
        for name, value in theirs[key].items():
            np.testing.assert_allclose(ours[key][name], value, rtol=1e-12, atol=1e-12)
    assert "q50" not in ours[TOP]  # pixel counts of the first writer are gone; an estimate would not be a quantile


def test_a_golden_set_can_be_continued(golden: Path, copy_of: Callable[[Path], Path]) -> None:
    root = copy_of(golden / "lerobot_v30/dataset")
    before = LeRobotSet(root)
    keys = [key for key, feature in before.info.features.items() if feature.shape != (1,)]
    features = {key: before.info.features[key] for key in keys}
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, fps=30, features=features, resume=True) as writer:
        for _ in range(3):
            picture = np.full((96, 128, 3), 90, dtype=np.uint8)
            joints = rng.normal(size=14).astype(np.float32)
            writer.add({key: picture if features[key].is_visual else joints for key in keys}, "something new")
        writer.save_episode()
    after = LeRobotSet(root)
    assert len(after) == len(before) + 3
    assert after[-1]["task"] == "something new"
    assert np.array_equal(after[-1]["action"], joints)
    for position in (0, 100, 166):
        for key, value in before[position].items():
            assert np.array_equal(after[position][key], value)


def test_a_discarded_episode_leaves_nothing(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, fps=FPS, features=FEATURES, codec="libx264") as writer:
        writer.add(frame(0, 0), "wrong")
        writer.discard_episode()
        writer.add(frame(1, 5), "right")
        writer.save_episode()
        writer.add(frame(0, 0), "unfinished")
    dataset = LeRobotSet(tmp_path)
    assert len(dataset) == 1
    assert dataset.tasks == {0: "right"}
    assert read_number(dataset[0][TOP]) == (1, 5)
    assert not (tmp_path / ".recording").exists()


def test_an_empty_set_opens(tmp_path: Path) -> None:
    LeRobotWriter(tmp_path, fps=FPS, features=FEATURES).close()
    assert len(LeRobotSet(tmp_path)) == 0


def test_a_full_chunk_is_followed_by_the_next() -> None:
    assert following((0, 0)) == (0, 1)
    assert following((4, 999)) == (5, 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action", np.zeros(4, dtype=np.float32), r"action: expected float32 of shape \(3,\), got float32 of \(4,\)"),
        ("action", [0.0, float("nan"), 0.0], r"action: expected finite numbers, got \[0.0, nan, 0.0\]"),
        ("action", np.array(["a", "b", "c"]), r"action: expected float32 of shape \(3,\), got <U1"),
        ("note", 3, "note: expected a UTF-8 string, got 3"),
        (TOP, np.zeros((64, 64, 3)), r"top: expected uint8 of shape \(64, 64, 3\), got float64 of \(64, 64, 3\)"),
        (SIDE, np.zeros((3, 16, 24), dtype=np.uint8), r"side: expected uint8 of shape \(16, 24, 3\), got uint8 of"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_leaves_no_trace(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    with LeRobotWriter(tmp_path, fps=FPS, features=FEATURES, codec="libx264") as writer:
        with pytest.raises(ValueError, match=message):
            writer.add(frame(0, 0) | {key: value}, "pick")
        writer.add(frame(0, 1), "pick")
        writer.save_episode()
    assert len(LeRobotSet(tmp_path)) == 1


def test_missing_and_unknown_features_are_named(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, fps=FPS, features=FEATURES) as writer:
        value = frame(0, 0) | {"force": 1.0}
        del value["action"]
        with pytest.raises(
            ValueError, match=r"frame: expected the set's features, got \['action'\] missing and \['force'\] unknown"
        ):
            writer.add(value, "pick")
        with pytest.raises(ValueError, match="episode: expected at least one frame, got none"):
            writer.save_episode()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"index": Feature("int64", (1,))}, "features: expected names other than LeRobot's own .*, got 'index'"),
        ({"a/b": Feature("float32", (1,))}, r"features\['a/b'\]: expected a feature name without '/', got 'a/b'"),
        (
            {"camera": Feature("video", (3, 64, 64))},
            r"features\['camera'\].shape: expected \(height, width, 3\) for video",
        ),
    ],
)
def test_features_that_cannot_be_stored_are_refused(tmp_path: Path, features: dict[str, Feature], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path, fps=FPS, features=features)


def test_an_existing_set_is_not_overwritten(recorded: Path) -> None:
    with pytest.raises(ValueError, match=r"root: expected an empty folder \(or resume=True to continue a set\), got"):
        LeRobotWriter(recorded, fps=FPS, features=FEATURES)


def test_pictures_can_be_given_as_tensors(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, fps=FPS, features={TOP: FEATURES[TOP]}, codec="libx264") as writer:
        writer.add({TOP: torch.from_numpy(numbered_picture(2, 77))}, "look")
        writer.save_episode()
    assert read_number(LeRobotSet(tmp_path)[0][TOP]) == (2, 77)


def test_a_writer_tells_what_it_has_recorded(tmp_path: Path) -> None:
    with LeRobotWriter(str(tmp_path), fps=FPS, features=FEATURES, robot_type="toy", codec="libx264") as writer:
        writer.add(frame(0, 0), "pick")
        writer.save_episode()
        assert repr(writer) == (
            f"LeRobotWriter('{tmp_path}', robot_type='toy', fps=10, num_episodes=1, num_frames=1, "
            f"cameras=['{TOP}', '{SIDE}'])"
        )
