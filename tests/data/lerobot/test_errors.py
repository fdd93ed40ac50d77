"""Whatever is wrong with a set, the message names the file and the field."""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_set import LENGTHS, SIDE, TOP

from moteur.data import LeRobotSet

Copy = Callable[[Path], Path]
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def edit_info(root: Path, **changes: Any) -> None:  # noqa: ANN401
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_table(path: Path, **columns: Any) -> None:  # noqa: ANN401
    table = pq.read_table(path)
    for name, values in columns.items():
        table = (
            table.drop([name])
            if values is None
            else table.set_column(table.column_names.index(name), name, pa.array(values))
        )
    pq.write_table(table, path)


def png(mode: str, height: int, width: int, declared: tuple[int, int] | None = None) -> dict[str, Any]:
    """A PNG file, whose header may declare another height and width."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    if declared is not None:
        content[16:24] = struct.pack(">2I", *declared[::-1])
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return {"bytes": bytes(content), "path": None}


def features_with(root: Path, key: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    features = json.loads((root / "meta/info.json").read_text())["features"]
    return features | {key: features[key] | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codebase_version": "v2.0"},
            r"info.json: codebase_version: expected one of \('v3.0', 'v2.1'\) .*, got 'v2.0'",
        ),
        ({"codebase_version": "v4.0"}, r"info.json: codebase_version: expected one of .*, got 'v4.0'"),
        ({"codebase_version": 3}, r"info.json: codebase_version: expected a string, got 3"),
        ({"storage_format": "lance"}, r"info.json: storage_format: expected 'parquet', got 'lance'"),
        ({"fps": 0}, r"info.json: fps: expected at least 1, got 0"),
        ({"fps": 29.97}, r"info.json: fps: expected an integer, got 29.97"),
        ({"fps": float("nan")}, r"info.json: fps: expected an integer, got nan"),
        ({"fps": "30"}, r"info.json: fps: expected an integer, got '30'"),
        ({"fps": True}, r"info.json: fps: expected an integer, got True"),
        ({"total_frames": 30}, r"info.json: total_frames: expected 29, the sum of the episode lengths, got 30"),
        ({"total_episodes": 5}, r"episode_index: expected 0 to 4 once each, got 4 rows"),
        ({"total_episodes": 2**48}, r"episode_index: expected 0 to 281474976710655 once each, got 4 rows"),
        ({"data_path": "a" * 5000}, r"info.json: data_path: expected names of at most 200 bytes, together 2000, got"),
        ({"data_path": "a/" * 2500}, r"info.json: data_path: expected names of at most 200 bytes, together 2000, got"),
        ({"video_path": "é{video_key}" * 20}, r"info.json: video_path: expected names of at most 200 bytes, together"),
        (
            {"data_path": "data/{secret}.parquet"},
            r"info.json: data_path: expected a path inside the set with the fields .'chunk_index',",
        ),
        ({"data_path": "data/{chunk_index:999999999d}"}, r"info.json: data_path: expected a path inside"),
        ({"data_path": "data/{"}, r"info.json: data_path: expected a path inside the set"),
        ({"data_path": "../{chunk_index}"}, r"info.json: data_path: expected a path inside the set"),
        (
            {"video_path": "{video_key:03d}.mp4"},
            r"info.json: video_path: expected a path inside the set with the fields",
        ),
        ({"video_path": None}, r"info.json: video_path: expected a path inside the set with the fields .*'video_key'"),
        ({"features": {}}, r"info.json: features: expected the columns that every LeRobot set has"),
        (
            {"features": {"a": {"dtype": "float32"}}},
            r"info.json: features: expected the columns .*, got none named \['timestamp', ",
        ),
        ({"robot_type": 7}, r"info.json: robot_type: expected a string, got 7"),
    ],
)
def test_wrong_info_is_named(recorded: Path, copy_of: Copy, changes: dict[str, Any], message: str) -> None:
    root = copy_of(recorded)
    edit_info(root, **changes)
    with pytest.raises(ValueError, match=message):
        LeRobotSet(root)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("action", {"dtype": "complex64"}, r"features.action.dtype: expected one of .*, got 'complex64'"),
        ("action", {"dtype": None}, r"features.action.dtype: expected a string, got None"),
        ("action", {"shape": [-3]}, r"features.action.shape\[0\]: expected at least 1, got -3"),
        ("action", {"shape": "3"}, r"features.action.shape: expected a list, got '3'"),
        (TOP, {"shape": [64, 64]}, r"top'\].shape: expected three sizes for a picture, got \[64, 64\]"),
        ("index", {"dtype": "float32"}, r"features.index: expected an integer of shape \[1\], got float32 of \[1\]"),
        ("task_index", {"shape": [2]}, r"features.task_index: expected an integer of shape \[1\], got int64 of \[2\]"),
        ("timestamp", {"dtype": "string"}, r"features.timestamp: expected a number of shape \[1\], got string"),
        (TOP, {"info": "av1"}, r"top'\].info: expected a mapping of fields, got 'av1'"),
    ],
)
def test_a_wrong_feature_is_named(
    recorded: Path, copy_of: Copy, key: str, changes: dict[str, Any], message: str
) -> None:
    root = copy_of(recorded)
    edit_info(root, features=features_with(root, key, **changes))
    with pytest.raises(ValueError, match=message):
        LeRobotSet(root)


def test_unknown_keys_and_integral_floats_in_info_are_fine(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    edit_info(root, fps=10.0, tools=[], total_videos=3, video_files_size_in_mb=None)
    assert LeRobotSet(root).info.fps == 10


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"[" * 100_000])
def test_info_that_is_no_json_object_is_named(recorded: Path, copy_of: Copy, content: bytes) -> None:
    root = copy_of(recorded)
    (root / "meta/info.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"info.json: expected (JSON, got other text|a mapping of fields)"):
        LeRobotSet(root)


def test_a_folder_without_info_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"info.json: missing, so .* is not a LeRobot set"):
        LeRobotSet(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is not a LeRobot set; LeRobotSet.download"):
        LeRobotSet("lerobot/pusht")


@pytest.mark.parametrize("name", ["meta/tasks.parquet", DATA, f"videos/{TOP}/chunk-000/file-000.mp4"])
def test_a_missing_file_is_named(recorded: Path, copy_of: Copy, name: str) -> None:
    root = copy_of(recorded)
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: .*missing"):
        LeRobotSet(root)[0]


def test_a_missing_episode_index_is_named(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    for path in root.glob("meta/episodes/*/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing, but info.json says 4 episodes"):
        LeRobotSet(root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"length": None}, r"file-000.parquet: expected the columns \['length'\], got"),
        ({"length": [-7]}, r"episodes: length: expected at least 1, got -7"),
        ({"length": ["7"]}, r"file-000.parquet: length: expected numbers, got string"),
        ({"length": [7.5]}, r"length: expected integers, got 7.5"),
        ({"data/file_index": [float("nan")]}, r"data/file_index: expected integers, got nan"),
        ({"length": [9]}, r"dataset_from_index: expected 9 for episode 1 by the lengths up to there, got 7"),
        ({"dataset_to_index": [8]}, r"dataset_to_index: expected 7 for episode 0 by the lengths up to there, got 8"),
        ({"episode_index": [2]}, r"episode_index: expected 0 to 3 once each"),
        ({f"videos/{TOP}/from_timestamp": [-1.0]}, r"top/from_timestamp: expected seconds from 0 on, got -1.0"),
        ({f"videos/{TOP}/from_timestamp": [float("nan")]}, r"top/from_timestamp: expected seconds from 0 on, got nan"),
    ],
)
def test_a_contradiction_in_the_episode_index_is_named(
    recorded: Path, copy_of: Copy, columns: dict[str, Any], message: str
) -> None:
    root = copy_of(recorded)
    edit_table(root / EPISODES, **columns)
    with pytest.raises(ValueError, match=message):
        LeRobotSet(root)


def test_drift_of_the_video_time_stamps_is_reported(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    edit_table(root / EPISODES, **{f"videos/{TOP}/from_timestamp": [0.04]})
    LeRobotSet(root)
    edit_table(root / EPISODES, **{f"videos/{TOP}/from_timestamp": [0.2]})
    with pytest.warns(UserWarning, match=r"top/from_timestamp leaves the frame grid by up to 2 frames"):
        LeRobotSet(root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"action": None}, r"file-000.parquet: expected the columns \['action'\], got"),
        (
            {"action": [[1.0, 2.0]] * 7},
            r"column action: expected float32 of shape \(3,\) as info.json says, got 14 values in 7 rows",
        ),
        (
            {"action": [[1.0, 2.0], [3.0] * 4] + [[1.0] * 3] * 5},
            r"column action: expected float32 .*, got lists of 2 to 4 values",
        ),
        ({"action": [None] * 7}, r"column action: expected float32 .*, got .* missing"),
        ({"action": [[1.0, None, 2.0]] * 7}, r"column action: expected float32 .*, got 7 missing values"),
        ({"action": ["abc"] * 7}, r"column action: expected float32 .*, got string"),
        ({"action": [{"a": 1}] * 7}, r"column action: expected float32 .*, got struct<a: int64>"),
        (
            {"action": [[1.0, 1e300, 2.0]] * 7},
            r"column action: expected float32 .*, got 1e\+300",
        ),
        ({"frame_index": [0, 2, 1, 3, 4, 5, 6]}, r"row 1: frame_index: expected 1 by .*, got 2"),
        ({"task_index": [5] * 7}, r"task_index: expected one of the task file's .*, got 5"),
        ({"note": [None] * 7}, r"column note, row 1: expected text, got None"),
        ({"note": list(range(7))}, r"column note, row 1: expected text, got 1"),
        (
            {SIDE: [{"bytes": b"no picture", "path": None}] * 7},
            r"side, row 1: expected a picture, got bytes that are none",
        ),
        (
            {SIDE: [png("RGB", 16, 25)] * 7},
            r"side, row 1: expected an RGB picture of \(16, 24\), got RGB of \(16, 25\)",
        ),
        (
            {SIDE: [png("RGB", 16, 24, declared=(9000, 9000))] * 7},
            r"side, row 1: expected an RGB picture of \(16, 24\), got RGB of \(9000, 9000\)",
        ),
        (
            {SIDE: [png("RGB", 16, 24, declared=(13_000, 13_000))] * 7},  # Pillow warns, and warnings are errors here
            r"side, row 1: expected a picture, got bytes that are none \(Image size",
        ),
        ({SIDE: [png("L", 16, 24)] * 7}, r"side, row 1: expected an RGB picture of \(16, 24\), got L of"),
        ({SIDE: [png("I;16", 16, 24)] * 7}, r"side, row 1: expected an RGB picture of .*, got I;16 of"),
        ({"timestamp": [n / 10 + 0.1 for n in range(7)]}, r"row 0: timestamp: expected 0.0 by .*, got 0.1"),
        ({"timestamp": [0.0, 0.1, float("nan")] * 2 + [0.6]}, r"row 2: timestamp: expected 0.2 by .*, got nan"),
        (
            {SIDE: [{"bytes": None, "path": "a.png"}] * 7},
            r"side, row 1: expected the bytes of a picture, got {'bytes': None",
        ),
    ],
)
def test_a_wrong_column_is_named(recorded: Path, copy_of: Copy, columns: dict[str, Any], message: str) -> None:
    root = copy_of(recorded)
    edit_table(root / DATA, **columns)
    with pytest.raises(ValueError, match=message):
        LeRobotSet(root)[1]


def test_too_few_rows_are_counted(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    pq.write_table(pq.read_table(root / DATA).slice(0, 5), root / DATA)
    with pytest.raises(
        ValueError, match=r"file-000.parquet: expected 7 rows by the lengths in the episode index, got 5"
    ):
        LeRobotSet(root)[1]


@pytest.mark.parametrize("name", [DATA, EPISODES, "meta/tasks.parquet"])
def test_a_truncated_table_is_named(recorded: Path, copy_of: Copy, name: str) -> None:
    root = copy_of(recorded)
    (root / name).write_bytes((root / name).read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{name}: expected a parquet file, got one that cannot be read"):
        LeRobotSet(root)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ["force"]}, r"keys: expected columns of .* \['observation.state', .*, got \['force'\]"),
        ({"offsets": {"force": [0]}}, r"offsets: expected some of the columns that are read .*, got 'force'"),
        (
            {"offsets": {"action": [0]}, "keys": [TOP]},
            r"offsets: expected some of the columns that are read .*, got 'action'",
        ),
        ({"offsets": {"index": [0]}}, r"offsets: expected .*, got 'index'"),
        ({"offsets": {"action": [0.5]}}, r"^offsets\['action'\]: expected integers, got \[0.5\]"),
        ({"episodes": [1.7]}, r"^episodes: expected integers, got \[1.7\]"),
        ({"episodes": [False, True]}, r"^episodes: expected integers, got \[False, True\]"),
        ({"episodes": 2}, r"^episodes: expected integers, got 2"),
        ({"episodes": [0, 4]}, r"episode: expected one of the 4 episodes of .*, got 4"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_that_do_not_fit_the_set_are_refused(recorded: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotSet(recorded, **arguments)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda dataset: dataset[1.5], "position: expected integers, got (1.5,)"),
        (lambda dataset: dataset.column("action", 0.5), "episode: expected integers, got (0.5,)"),
        (lambda dataset: dataset.frames_at(TOP, 0, [1.7]), "indices: expected integers, got [1.7]"),
    ],
)
def test_a_fraction_is_no_place(recorded: Path, action: Callable[[LeRobotSet], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        action(LeRobotSet(recorded))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"episodes.jsonl: expected JSON lines, got other text"),
        ("[]", r"episodes.jsonl: \[0\]: expected a mapping of fields, got \[\]"),
        ('{"episode_index": 0, "length": "20"}', r"episodes.jsonl: \[0\].length: expected an integer, got '20'"),
        ('{"episode_index": 0, "length": true}', r"episodes.jsonl: \[0\].length: expected an integer, got True"),
        ("[" * 20_000, r"episodes.jsonl: expected JSON lines, got other text"),
        ('{"episode_index": 9, "length": 20}', r"episodes.jsonl: episode_index: expected 0 to 2 in order"),
    ],
)
def test_a_wrong_line_of_a_v21_index_is_named(golden: Path, copy_of: Copy, line: str, message: str) -> None:
    root = copy_of(golden / "lerobot_v21/dataset")
    path = root / "meta/episodes.jsonl"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    with pytest.raises(ValueError, match=message):
        LeRobotSet(root)


def test_more_episodes_than_memory_holds_are_not_counted_one_by_one(golden: Path, copy_of: Copy) -> None:
    root = copy_of(golden / "lerobot_v21/dataset")
    edit_info(root, total_episodes=2**48)
    with pytest.raises(ValueError, match=r"episodes.jsonl: episode_index: expected 0 to 281474976710655 in order, got"):
        LeRobotSet(root)


def test_entry_names_may_be_nested_as_deep_as_json_can(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    names: Any = ["x", "y", "z"]
    for _ in range(900):
        names = [names]
    edit_info(root, features=features_with(root, "action", names=names))
    assert LeRobotSet(root).info.features["action"].labels == ("x", "y", "z")


def test_rows_of_an_unfinished_episode_are_ignored(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    edit_info(root, total_episodes=3, total_frames=sum(LENGTHS[:3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = LeRobotSet(root)
    assert len(dataset) == sum(LENGTHS[:3])
    assert np.array_equal([dataset.locate(position)[0] for position in (0, -1)], [0, 2])
