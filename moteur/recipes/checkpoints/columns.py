"""Statistics by column, the form of a released checkpoint's `stats.json`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moteur.data import FieldStatistics, Robot, RobotStatistics, Source

_RELEASED = ("mean", "std", "min", "max")
_MORE = ("q01", "q10", "q50", "q90", "q99", "entries")


def column_statistics(statistics: RobotStatistics, robot: Robot) -> dict[str, dict[str, Any]]:
    """Column name to lists under mean, std, min and max, as released, and under count, the quantiles and `entries`.

    Where a schema takes part of a column, the entry is called `column[start:stop]`. Where one column is used twice, as
    state and as action, say, the second entry is called `column (action 0)`, by the dimension it begins at.

    Args:
        statistics: The robot's statistics.
        robot: The schema that says which columns make state and action.
    """
    found: dict[str, dict[str, Any]] = {}
    for group, name, source, first in _entries(robot):
        field = getattr(statistics, group)
        values = {key: getattr(field, key) for key in (*_RELEASED, *_MORE)}
        lists = {key: list(value[first : first + source.size]) for key, value in values.items() if value}
        found[name] = {"count": [field.count], **lists}
    return found


def released_statistics(values: Mapping[str, Any], robot: Robot, *, steps: int = 50) -> RobotStatistics:
    """The way back from `column_statistics`, and how one robot's entry of a released `stats.json` is read.

    Args:
        values: Column name to lists under mean, std, min and max; count, quantiles and `entries` are read where they
            are.
        robot: The schema that says which columns make state and action.
        steps: Chunk length they were taken over.

    Raises:
        ValueError: A column or one of its lists is missing or has another length; it is named.
    """

    def joined(group: str) -> FieldStatistics:
        columns = [_column(values, name, source) for kind, name, source, _ in _entries(robot) if kind == group]
        known = [key for key in _MORE if columns and all(key in column for column in columns)]
        lists: dict[str, Any] = {
            key: tuple((str if key == "entries" else float)(value) for column in columns for value in column[key])
            for key in (*_RELEASED, *known)
        }
        return FieldStatistics(min((int(column["count"][0]) for column in columns), default=0), **lists)

    return RobotStatistics(robot.name, steps, joined("state"), joined("action") if robot.action else None)


def _column(values: Mapping[str, Any], name: str, source: Source) -> dict[str, np.ndarray]:
    """Lists of one entry: under its own name or, for part of a column, cut out of the whole column's."""
    own = name in values or not name.endswith("]")
    entry, start = values.get(name if own else source.key, {}), 0 if own else source.start
    found = {"count": np.ravel(entry.get("count", [0]))}
    for key in (*_RELEASED, *_MORE):
        numbers = np.ravel(entry.get(key, []))[start : start + source.size]
        if len(numbers) == source.size:
            found[key] = numbers
        elif key in _RELEASED:
            raise ValueError(f"values[{name!r}][{key!r}] must hold {source.size} numbers, got {entry.get(key)!r}")
    return found


def _entries(robot: Robot) -> Iterator[tuple[str, str, Source, int]]:
    """Group, name in the file, source, and the source's first dimension, for all parts of state and action."""
    used: set[str] = set()
    for group in ("state", "action"):
        first = 0
        for source in getattr(robot, group):
            part = source.start or source.part
            name = f"{source.key}[{source.start}:{source.start + source.size}]" if part else source.key
            name = f"{name} ({group} {first})" if name in used else name
            used.add(name)
            yield group, name, source, first
            first += source.size
