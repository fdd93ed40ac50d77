"""Bytes that are no UTF-8, in names and texts: the message names the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_set import FEATURES, FPS, record

from moteur.data import LeRobotSet, LeRobotWriter

Copy = Callable[[Path], Path]
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"


@pytest.mark.parametrize(
    ("name", "column"), [(DATA, b"timestamp"), (EPISODES, b"dataset_from_index"), (TASKS, b"task_index")]
)
def test_a_damaged_column_name_is_reported_with_its_file(
    recorded: Path, copy_of: Copy, name: str, column: bytes
) -> None:
    root = copy_of(recorded)
    content = (root / name).read_bytes()
    assert column in content
    (root / name).write_bytes(content.replace(column, column[:3] + b"\xe4" + column[4:]))
    with pytest.raises(
        ValueError,
        match=rf"{name}: expected a parquet file, got one that cannot be read \(.*utf-8.* can't decode byte 0xe4",
    ):
        LeRobotSet(root)[0]


def test_a_column_name_damaged_after_the_file_was_opened_is_reported_with_its_file(
    recorded: Path, copy_of: Copy
) -> None:
    root = copy_of(recorded)
    dataset = LeRobotSet(root)
    dataset[0]
    dataset.close()
    content = (root / DATA).read_bytes()
    (root / DATA).write_bytes(content.replace(b"timestamp", b"tim\xe4stamp"))
    with pytest.raises(ValueError, match=rf"{DATA}: row group 0: expected readable data, got damage \(.*utf-8"):
        dataset[0]


def no_text(count: int) -> pa.Array:
    """Arrow strings that are no UTF-8."""
    return pa.array([b"pick \xe4"] * count, type=pa.binary()).view(pa.string())


def test_a_damaged_task_text_is_reported_with_its_file(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    table = pq.read_table(root / TASKS)
    place = next(number for number, name in enumerate(table.column_names) if name != "task_index")
    pq.write_table(table.set_column(place, table.column_names[place], no_text(len(table))), root / TASKS)
    with pytest.raises(ValueError, match=rf"{TASKS}: expected UTF-8 text, got other bytes \(.*byte 0xe4"):
        LeRobotSet(root)


def test_a_damaged_text_is_reported_with_its_file_column_and_row(recorded: Path, copy_of: Copy) -> None:
    root = copy_of(recorded)
    table = pq.read_table(root / DATA)
    pq.write_table(table.set_column(table.column_names.index("note"), "note", no_text(len(table))), root / DATA)
    with pytest.raises(
        ValueError, match=rf"{DATA}: column note, row 3: expected UTF-8 text, got other bytes \(.*byte 0xe4"
    ):
        LeRobotSet(root)[3]


def test_a_damaged_text_beside_the_statistics_stops_a_resume_with_the_file_named(tmp_path: Path) -> None:
    root = record(tmp_path / "set", lengths=(2,))
    table = pq.read_table(root / EPISODES)
    texts = pa.ListArray.from_arrays([0, 1], no_text(1))
    pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", texts), root / EPISODES)
    with pytest.raises(ValueError, match=rf"{EPISODES}: expected UTF-8 text, got other bytes \(.*byte 0xe4"):
        LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264", resume=True)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_the_older_format_ends_at_a_newline_only(
    golden: Path, copy_of: Copy, character: str, end: str
) -> None:
    root = copy_of(golden / "lerobot_v21/dataset")
    path = root / "meta/tasks.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    rows[0]["task"] = text = f"pick{character}place"
    lines = [json.dumps(row, ensure_ascii=False) + end for row in rows]
    path.write_bytes("".join(lines).encode())
    assert LeRobotSet(root).tasks[rows[0]["task_index"]] == text
