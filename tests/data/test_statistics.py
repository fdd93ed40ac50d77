"""Statistics as values: what they refuse, their files, and merging."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moteur.data import FieldStatistics, RobotStatistics

JOINT = FieldStatistics(4, (1.0, 2.0), (0.5, 0.0), (0.0, 2.0), (3.0, 2.0), q50=(1.0, 2.0), entries=("a[0]", "a[1]"))
ARM = RobotStatistics("arm", 6, JOINT, replace(JOINT, count=20, entries=None))


def test_statistics_survive_files_to_the_last_bit(statistics: RobotStatistics, tmp_path: Path) -> None:
    for found in (statistics, ARM, replace(ARM, action=None)):
        found.save(str(tmp_path / "stats.json"))
        assert RobotStatistics.load(tmp_path / "stats.json") == RobotStatistics.load(str(tmp_path / "stats.json"))
        assert RobotStatistics.load(tmp_path / "stats.json") == found
        assert RobotStatistics.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_files_without_entries_and_quantiles_still_load(tmp_path: Path) -> None:
    values = ARM.to_dict()
    for group in ("state", "action"):
        for name in ("q01", "q10", "q50", "q90", "q99", "entries"):
            del values[group][name]
    (tmp_path / "old.json").write_text(json.dumps(values))
    found = RobotStatistics.load(tmp_path / "old.json")
    assert found.state == replace(JOINT, q50=None, entries=None)


def changed(*path: Any, value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Plain values of `ARM` with one of them replaced, or removed if None."""
    values = part = ARM.to_dict()
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if value is None:
        del part[path[-1]]
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "stats.json: expected a mapping of fields, got []"),
        (changed("action", value=None), "stats.json: action: expected a value, got none"),
        (changed("state", "mean", value=[1.0, "two"]), "stats.json: state.mean[1]: expected a number, got 'two'"),
        (changed("state", "mean", value="12"), "stats.json: state.mean: expected a list, got '12'"),
        (changed("state", "men", value=[1.0, 2.0]), "stats.json: state.men: unknown field, did you mean 'mean'?"),
        (
            changed("chunk", value=6.5),
            "stats.json: chunk: expected an integer, got 6.5",
        ),
        (changed("state", "max", value=[1.0]), "state.max: expected 2 entries, as many as of the mean, got 1"),
        (changed("state", "entries", value=["a"]), "state.entries: expected 2 entries, as many as of the mean, got 1"),
        (changed("state", "q50", value=[0.0, float("nan")]), "state.q50[1]: expected a finite number, got nan"),
        (changed("action", "max", value=[float("inf"), 0]), "action.max[0]: expected a finite number, got inf"),
        (
            changed("action", "std", value=[0.5, -1e-9]),
            "stats.json: action.std[1]: expected at least 0, got -1e-09",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, values: object, message: str) -> None:
    (tmp_path / "stats.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(message)):
        RobotStatistics.load(tmp_path / "stats.json")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (float("nan"), 0.0)}, "mean[0]: expected a finite number, got nan"),
        ({"max": (float("inf"), 9.0)}, "max[0]: expected a finite number, got inf"),
        ({"std": (1.0, -5.0)}, "std[1]: expected at least 0, got -5.0"),
        ({"std": (1.0,)}, "std: expected 2 entries, as many as of the mean, got 1"),
        ({"mean": "ab"}, "mean: expected a list, got 'ab'"),
        ({"mean": ("1", "2")}, "mean[0]: expected a number, got '1'"),
        ({"min": (0.0, 9.0), "max": (9.0, 1.0)}, "min: expected at most the max, 1.0, in dimension 1, got 9.0"),
        ({"count": -1}, "count: expected at least 0, got -1"),
        ({"count": "4"}, "count: expected an integer, got '4'"),
        ({"entries": "ab"}, "entries: expected a list, got 'ab'"),
    ],
)
def test_numbers_that_cannot_be_statistics_are_refused_from_python_and_from_a_file(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The classes check, because checkpoints build them from another form of file."""
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        replace(JOINT, **changes)
    path = tmp_path / "stats.json"
    path.write_text(json.dumps(ARM.to_dict() | {"state": ARM.to_dict()["state"] | changes}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: state.{message}")):
        RobotStatistics.load(path)


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "stats.json").write_text("{")
    with pytest.raises(ValueError, match=r"stats.json: expected JSON, got other text \(Expecting property name"):
        RobotStatistics.load(tmp_path / "stats.json")


def test_they_print_in_a_line() -> None:
    assert (
        repr(ARM)
        == "RobotStatistics('arm', chunks of 6 steps, state: 2 dimensions, 4 rows, action: 2 dimensions, 20 rows)"
    )
    assert repr(JOINT) == "FieldStatistics(2 dimensions, 4 rows)"


def test_merged_moments_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(number, 2, size=(5 + number, 2)) for number in range(4)]
    parts = [
        FieldStatistics(len(part), *(tuple(getattr(part, name)(axis=0)) for name in ("mean", "std", "min", "max")))
        for part in rows
    ]
    merged = RobotStatistics.merge([RobotStatistics("arm", 6, part, None) for part in parts])
    every = np.concatenate(rows)
    assert merged.state.count == len(every)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged.state, name), getattr(every, name)(axis=0), rtol=1e-12)
    assert merged.state.q50 is None
    assert merged.action is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(ARM, chunk=50), "parts: expected one robot, chunk length and size, got [('arm', 50, 2, 2), ('arm', 6"),
        (
            replace(ARM, state=replace(JOINT, entries=("b[0]", "b[1]"))),
            "parts: expected the same columns, got [('a[0]', 'a[1]'), ('b[0]', 'b[1]')]",
        ),
    ],
)
def test_statistics_that_do_not_belong_together_do_not_merge(other: RobotStatistics, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RobotStatistics.merge([ARM, other])
    with pytest.raises(ValueError, match=r"parts: expected one robot, chunk length and size, got \[\]"):
        RobotStatistics.merge([])


def test_merged_entries_are_known_if_all_parts_know_them() -> None:
    assert RobotStatistics.merge([ARM, ARM]).state.entries == JOINT.entries
    assert RobotStatistics.merge([ARM, replace(ARM, state=replace(JOINT, entries=None))]).state.entries is None
