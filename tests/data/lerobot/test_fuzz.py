"""Damaged sets: a set opens and reads, or says which file is wrong; nothing else happens."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_set import TOP

from moteur.data import LeRobotSet
from moteur.data.lerobot.info import Modality

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# The same damage each run: a file that makes a decoder misbehave is looked into, not met by chance.
FUZZ = settings(
    deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TABLES = ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"]
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def damaged(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(recorded, tmp_path_factory.mktemp("fuzz") / "set"))


def read_or_complain(root: Path) -> None:
    """Reading works, or raises an error that names a file or an argument of the set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            dataset = LeRobotSet(root, offsets={TOP: (-2, 0, 2)})
            for position in (0, 5):
                if len(dataset) > position:
                    dataset[position]
        except (ValueError, FileNotFoundError) as error:
            if str(root) not in str(error) and "offsets: expected" not in str(error):
                raise AssertionError(f"this does not say which file is wrong: {error!r}") from error


def flipped(content: bytes, edits: list[tuple[int, int]], cut: int | None) -> bytes:
    data = bytearray(content)
    for place, value in edits:
        data[place % len(data)] = value
    return bytes(data[: cut % len(data)] if cut is not None else data)


EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=12)
CUT = st.none() | st.integers(0, 2**20)


@given(data=st.data())
@FUZZ
def test_any_value_anywhere_in_info_is_read_or_named(recorded: Path, damaged: Path, data: st.DataObject) -> None:
    info: dict[str, Any] = json.loads((recorded / "meta/info.json").read_text())
    target: Any = info
    while True:
        keys = sorted(target)
        key = data.draw(st.sampled_from(keys))
        if isinstance(target[key], dict) and target[key] and data.draw(st.booleans()):
            target = target[key]
            continue
        if data.draw(st.booleans()):
            target[key] = data.draw(JSON)
        else:
            del target[key]
        break
    (damaged / "meta/info.json").write_text(json.dumps(info))
    read_or_complain(damaged)
    shutil.copy(recorded / "meta/info.json", damaged / "meta/info.json")


@pytest.mark.parametrize("name", [*TABLES, VIDEO, "meta/info.json"])
@given(edits=EDITS, cut=CUT)
@FUZZ
def test_changed_and_missing_bytes_are_read_or_named(
    recorded: Path, damaged: Path, name: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    (damaged / name).write_bytes(flipped((recorded / name).read_bytes(), edits, cut))
    read_or_complain(damaged)
    shutil.copy(recorded / name, damaged / name)


@pytest.mark.parametrize("name", ["meta/episodes.jsonl", "meta/tasks.jsonl", "meta/modality.json"])
@given(edits=EDITS, cut=CUT, line=JSON)
@FUZZ
def test_changed_lines_of_the_older_format_are_read_or_named(
    golden: Path, tmp_path: Path, name: str, edits: list[tuple[int, int]], cut: int | None, line: object
) -> None:
    root = tmp_path / "set"
    if not root.exists():
        shutil.copytree(golden / "lerobot_v21/dataset", root)
    original = golden / "lerobot_v21/dataset" / name
    content = original.read_bytes() if original.exists() else json.dumps({"state": {"arm": line}}).encode()
    (root / name).write_bytes(flipped(content, edits, cut))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            if name.endswith("modality.json"):
                Modality.load(root)
            LeRobotSet(root)[0]
        except (ValueError, FileNotFoundError) as error:
            if str(root) not in str(error):
                raise AssertionError(f"this does not say which file is wrong: {error!r}") from error
        except IndexError:
            assert len(LeRobotSet(root)) == 0
