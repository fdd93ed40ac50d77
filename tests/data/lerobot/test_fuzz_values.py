"""Well-formed files with the wrong things in them: a set opens and reads, or says which file is wrong."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toy_set import FEATURES, FPS

from moteur.data import LeRobotSet, LeRobotWriter
from moteur.data.lerobot.info import MODALITY_FILE, Modality

# The same cases each run, and no shrinking: a failing case names its file and its draws as it is.
FUZZ = settings(
    deadline=None,
    max_examples=50,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TABLES = ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"]
WHOLE, REAL = st.integers(-(2**63), 2**63 - 1), st.floats(width=32)
CELLS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), WHOLE | st.integers(-3, 12)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float32(), REAL),
    (pa.float64(), st.floats() | st.floats(-2, 20)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.timestamp("us"), st.integers(0, 2**40)),
    (pa.decimal128(5, 2), st.decimals(-99, 99, places=2)),
    (pa.null(), st.none()),
    (pa.list_(pa.float32()), st.lists(REAL, max_size=4)),
    (pa.list_(pa.float32(), 3), st.lists(REAL, min_size=3, max_size=3)),
    (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=2)),
    (pa.list_(pa.list_(pa.float64())), st.lists(st.lists(st.floats(), max_size=3), max_size=3)),
    (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), st.fixed_dictionaries({"bytes": st.binary()})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=2), WHOLE), max_size=2)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def damaged(recorded: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    originals = {"v30": recorded, "v21": golden / "lerobot_v21/dataset"}
    return {name: Path(shutil.copytree(root, folder / name)) for name, root in originals.items()}


def read_or_complain(root: Path, action: Callable[[Path], object]) -> None:
    """The action succeeds, or raises an error that names a file of the set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            action(root)
        except (ValueError, FileNotFoundError) as error:
            if str(root) not in str(error):
                raise AssertionError(f"this does not say which file is wrong: {error!r}") from error


def read_some(root: Path) -> None:
    dataset = LeRobotSet(root)
    if (root / MODALITY_FILE).exists():
        Modality.load(root)
    for position in {0, len(dataset) // 2, len(dataset) - 1} if len(dataset) else ():
        dataset[position]


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@FUZZ
def test_a_column_of_any_type_and_length_is_read_or_named(
    recorded: Path, damaged: dict[str, Path], name: str, data: st.DataObject
) -> None:
    root, table = damaged["v30"], pq.read_table(recorded / name)
    rows = data.draw(st.sampled_from([len(table), len(table), 0, 1, len(table) + 1]))
    table = table.take(pa.array([row % len(table) for row in range(rows)], type=pa.int64()))
    columns = [column for column in table.column_names if not column.startswith("stats/")]
    for column in data.draw(st.lists(st.sampled_from(columns), max_size=2, unique=True)):
        kind, cells = data.draw(st.sampled_from(CELLS))
        gaps = cells | st.none() if data.draw(st.booleans()) else cells
        values = pa.array(data.draw(st.lists(gaps, min_size=rows, max_size=rows)), type=kind)
        table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, root / name)
    try:
        read_or_complain(root, read_some)
    finally:
        shutil.copy(recorded / name, root / name)


def edited(value: Any, data: st.DataObject) -> Any:  # noqa: ANN401
    """The value with one place in it replaced, dropped or doubled."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 3)):
        place = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        if data.draw(st.integers(0, 4)) == 0:
            del value[place]
        else:
            value[place] = edited(value[place], data)
        return value
    return data.draw(JSON)


MODALITY = {
    "state": {"arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7, "original_key": "observation.state"}},
    "action": {"arm": {"original_key": "action", "start": 0, "end": 6}},
    "video": {"ego": {"original_key": "observation.images.top"}, "im": {}},
    "annotation": {"human.task": {"original_key": "task_index"}},
}


@pytest.mark.parametrize(
    "name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/modality.json", "meta/stats.json"]
)
@given(data=st.data())
@FUZZ
def test_any_value_in_the_json_files_of_a_v21_set_is_read_or_named(
    golden: Path, damaged: dict[str, Path], name: str, data: st.DataObject
) -> None:
    root, original = damaged["v21"], golden / "lerobot_v21/dataset" / name
    if name.endswith("jsonl"):
        lines = edited([json.loads(line) for line in original.read_text().splitlines()], data)
        text = "\n".join(json.dumps(line) for line in (lines if isinstance(lines, list) else [lines]))
    else:
        start = json.loads(original.read_text()) if original.exists() else json.loads(json.dumps(MODALITY))
        text = json.dumps(edited(start, data))
    (root / name).write_text(text)
    try:
        read_or_complain(root, read_some)
    finally:
        shutil.copy(original, root / name) if original.exists() else (root / name).unlink()


@given(data=st.data())
@settings(FUZZ, max_examples=15)
def test_a_set_with_any_statistics_is_continued_or_named(
    recorded: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root, name = tmp_path_factory.mktemp("continued") / "set", TABLES[1]
    shutil.copytree(recorded, root)
    table = pq.read_table(root / name)
    statistics = [column for column in table.column_names if column.startswith("stats/")]
    for column in data.draw(st.lists(st.sampled_from(statistics), min_size=1, max_size=3, unique=True)):
        kind, cells = data.draw(st.sampled_from(CELLS))
        values = pa.array([data.draw(cells)], type=kind)
        table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, root / name)
    read_or_complain(
        root, lambda root: LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264", resume=True).close()
    )
    shutil.rmtree(root)
