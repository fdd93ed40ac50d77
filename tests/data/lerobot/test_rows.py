"""A parquet file holds the rows that the episode index counts: no fewer, no more, in their order."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot import dataset, table

Copy = Callable[[Path], Path]
DATA = "data/chunk-000/file-000.parquet"


def rearrange(path: Path, rows: list[int], *, group: int | None = None) -> None:
    """Rewrite a table with these of its rows, `group` rows to a row group."""
    pq.write_table(pq.read_table(path).take(rows), path, row_group_size=group)


def test_surplus_rows_of_a_v21_episode_are_counted(golden: Path, copy_of: Copy) -> None:
    root = copy_of(golden / "lerobot_v21/dataset")
    dataset = LeRobotSet(root, keys=())
    length, first = int(dataset.index.length[1]), int(dataset.index.start[1])
    rearrange(root / "data/chunk-000/episode_000001.parquet", [*range(length), length - 1])
    message = rf"episode_000001.parquet: expected {length} rows by the lengths in the episode index, got {length + 1}$"
    with pytest.raises(ValueError, match=message):
        dataset[first]


@pytest.mark.parametrize("group", [None, 7, 1])
def test_surplus_rows_of_a_v30_episode_are_counted(recorded: Path, copy_of: Copy, group: int | None) -> None:
    root = copy_of(recorded)
    rearrange(root / DATA, [*range(7), 6], group=group)
    with pytest.raises(
        ValueError, match=r"file-000.parquet: expected 7 rows by the lengths in the episode index, got 8$"
    ):
        LeRobotSet(root)[0]


@pytest.mark.parametrize("name", [DATA, "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"])
def test_of_a_table_with_far_more_rows_than_are_promised_nothing_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A few kilobytes of parquet can hold millions of equal rows."""
    with LeRobotWriter(tmp_path, fps=10, features={"force": Feature("bool", (1,))}) as writer:
        writer.add({"force": True}, "push")
        writer.save_episode()
    monkeypatch.setattr(table, "SURPLUS_ROWS", 1000)
    monkeypatch.setattr(dataset, "SURPLUS_ROWS", 1000)
    rearrange(tmp_path / name, [0] * 1002)
    monkeypatch.setattr(table.TableFile, "_read", None)
    with pytest.raises(ValueError, match=rf"{name}: expected 1 rows by .*, got 1002"):
        LeRobotSet(tmp_path)[0]


def test_a_surplus_row_between_the_episodes_of_a_file_is_named(golden: Path, copy_of: Copy) -> None:
    root = copy_of(golden / "lerobot_v30/dataset")
    dataset = LeRobotSet(root, keys=())
    length, total = int(dataset.index.length[0]), len(dataset)
    rearrange(root / DATA, [*range(length), length - 1, *range(length, total - 1)])
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        dataset[length]
    assert str(caught.value) == (
        f"{root / DATA}: row {length}: index: expected {length} by the lengths in the episode index, got {length - 1}"
    )


def test_rows_of_an_episode_that_was_cut_off_may_follow(golden: Path, copy_of: Copy) -> None:
    root = copy_of(golden / "lerobot_v30/dataset")
    whole = LeRobotSet(root, keys=["action"])
    kept = int(whole.index.start[-1])
    path = root / "meta/info.json"
    counts = {"total_episodes": len(whole.index) - 1, "total_frames": kept}
    path.write_text(json.dumps(json.loads(path.read_text()) | counts))
    shorter = LeRobotSet(root, keys=["action"])
    assert len(shorter) == kept < len(whole)
    for position in (0, kept - 1):
        assert np.array_equal(shorter[position]["action"], whole[position]["action"])


@pytest.mark.parametrize("position", range(7))
def test_two_rows_that_changed_places_are_noticed_from_any_window(recorded: Path, copy_of: Copy, position: int) -> None:
    root = copy_of(recorded)
    rearrange(root / DATA, [0, 1, 2, 5, 4, 3, 6])
    with pytest.raises(ValueError, match=r"row 3: index: expected 3 by the lengths .*, got 5"):
        LeRobotSet(root, offsets={"action": [0, 3]})[position]


@pytest.mark.parametrize("name", ["index", "episode_index", "frame_index"])
def test_each_bookkeeping_column_is_compared(recorded: Path, copy_of: Copy, name: str) -> None:
    root = copy_of(recorded)
    table = pq.read_table(root / DATA)
    values = table[name].to_pylist()
    column = pa.array([*values[:6], values[6] + 1])
    pq.write_table(table.set_column(table.column_names.index(name), name, column), root / DATA)
    with pytest.raises(
        ValueError, match=rf"row 6: {name}: expected {values[6]} by the lengths .*, got {values[6] + 1}"
    ):
        LeRobotSet(root)[0]


def test_a_damaged_byte_is_refused_or_changes_no_number(tmp_path: Path) -> None:
    """Parquet leaves random numbers as they are, so that most bytes of this file are numbers: pages have checksums."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path, fps=10, features={"state": Feature("float64", (40,))}) as writer:
        for _ in range(20):
            writer.add({"state": rng.normal(size=40)}, "reach")
        writer.save_episode()
    content = (tmp_path / DATA).read_bytes()
    expected, refused = LeRobotSet(tmp_path).column("state", 0), 0
    for place in rng.choice(len(content), 200, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / DATA).write_bytes(damaged)
        message = ""
        try:
            found = LeRobotSet(tmp_path).column("state", 0)
        except ValueError as error:
            message, found = str(error), expected
        assert np.array_equal(found, expected), place
        assert not message or str(tmp_path / DATA) in message, message
        refused += bool(message)
    assert refused >= 100
