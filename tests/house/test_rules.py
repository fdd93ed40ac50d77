"""The house rules that can be counted."""

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("moteur", "tests", "examples", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)


def test_no_file_is_longer_than_450_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_no_file_name_stands_twice_in_the_package() -> None:
    names = Counter(path.name for path in (ROOT / "moteur").rglob("*.py"))
    twice = {name for name, count in names.items() if count > 1}
    assert twice <= {"__init__.py", "__main__.py"}


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert [path for path in SOURCES if path.stem in {"utils", "util", "common", "helpers", "base", "misc"}] == []


@pytest.mark.parametrize("mark", ["TO" + "DO", "FIX" + "ME", "raise NotImplemented" + "Error", "from __future__"])
def test_nothing_is_left_for_later(mark: str) -> None:
    here = Path(__file__)
    assert [str(path) for path in SOURCES if path != here and mark in path.read_text()] == []
