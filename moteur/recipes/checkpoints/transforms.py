"""Robots' statistics and transforms in `stats.json`, in the released form and back."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from moteur import data
from moteur.files import parse, read_json
from moteur.recipes.checkpoints.folder import STATISTICS

Statistics: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Robot name to plain values: those of `dump_transforms`, released ones by column, or `RobotStatistics.to_dict()`."""

_ADAPTER = TypeAdapter(dict[str, dict[str, Any]])
SETTINGS = "preparation"
_RELEASED = ("mean", "std", "min", "max")


def dump_transforms(*transforms: "data.RobotTransform") -> dict[str, dict[str, Any]]:
    """JSON values of robots' transforms, for `model.statistics`: all that acting needs to know about the robots.

    Robot name to column name to lists under mean, std, min and max, as in a released `stats.json`; beside them counts,
    quantiles and the names of the dimensions, and under "preparation" the schema and the settings. Floats survive JSON
    exactly.

    Args:
        *transforms: One for each robot.

    Raises:
        ValueError: Two are for robots of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for transform in transforms:
        robot, statistics = transform.robot, transform.statistics
        if robot.name in found:
            raise ValueError(f"transforms: expected each robot once, got {robot.name!r} twice")
        settings = {
            "robot": robot.to_dict(),
            "statistics_chunk": statistics.chunk,
            "window": transform.window.to_dict(),
            "size": transform.size,
            "dims": transform.dims,
            "mode": transform.mode,
            "images": transform.images,
        }
        if transform.convention != "internvla_a1":  # earlier versions do not know the setting
            settings["convention"] = transform.convention
        found[robot.name] = {**column_statistics(statistics, robot), SETTINGS: settings}
    return found


def load_transforms(statistics: Statistics) -> "dict[str, data.RobotTransform]":
    """Robots' transforms from `model.statistics`, or from a released `stats.json`.

    Args:
        statistics: Robot name to entry. An entry of `dump_transforms` brings its schema and settings; one without them,
            as in a released file, or of the form `RobotStatistics.to_dict()`, is that of a built-in robot, with the
            settings of the released checkpoints.

    Raises:
        ValueError: An entry is damaged or incomplete, or names a robot that is not built in and has no schema.
    """
    return {name: _transform(name, entry) for name, entry in statistics.items()}


def column_statistics(statistics: "data.RobotStatistics", robot: "data.Robot") -> dict[str, dict[str, Any]]:
    """Statistics by column, as in a released `stats.json`, with counts, quantiles and `entries` beside them.

    Part of a column is called `column[start:stop]`. A column that is used twice, as state and as action, is called
    `column (action 0)` the second time, by the dimension it begins at.
    """
    found: dict[str, dict[str, Any]] = {}
    for group, name, source, first in _entries(robot):
        field = getattr(statistics, group)
        values = {key: getattr(field, key) for key in _lists()}
        lists = {key: list(value[first : first + source.size]) for key, value in values.items() if value}
        found[name] = {"count": [field.count], **lists}
    return found


def released_statistics(
    values: Mapping[str, Any], robot: "data.Robot", *, chunk: int = data.Window.chunk
) -> "data.RobotStatistics":
    """Statistics of a robot, over chunks of this length, from its entry by columns: inverts `column_statistics`.

    Raises:
        ValueError: A column or one of its lists is missing or has another length; it is named.
    """
    state, action = (
        [_column(values, name, source) for kind, name, source, _ in _entries(robot) if kind == group]
        for group in ("state", "action")
    )
    return data.RobotStatistics(robot.name, chunk, _joined(state), _joined(action) if robot.action else None)


def read_statistics(folder: Path) -> Statistics:
    """Content of a folder's `stats.json`; empty where there is none."""
    path = folder / STATISTICS
    if not path.is_file():
        return {}
    try:
        return check_statistics(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_statistics(values: object) -> dict[str, dict[str, Any]]:
    """The same values; a ValueError names a place that is no robot's entry of plain, finite values for JSON."""
    plain = dict(values) if isinstance(values, Mapping) else values
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"statistics: expected plain, finite values that JSON can hold ({error})") from error
    return parse(_ADAPTER, plain, "statistics", strict=True)


def _transform(name: str, entry: Mapping[str, Any]) -> "data.RobotTransform":
    settings: dict[str, Any] = dict(entry.get(SETTINGS, {}))
    try:
        if {"state", "action", "chunk"} <= entry.keys():
            statistics = data.RobotStatistics.from_dict(entry)
            return data.RobotTransform(data.Robot.known(name), statistics, window=data.Window(chunk=statistics.chunk))
        robot = data.Robot.from_dict(settings.pop("robot")) if settings else data.Robot.known(name)
        window = data.Window.from_dict(settings.pop("window", {}))
        statistics = released_statistics(entry, robot, chunk=settings.pop("statistics_chunk", data.Window.chunk))
        return data.RobotTransform(robot, statistics, window=window, **settings)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"statistics of {name!r}: {error}") from error


def _lists() -> tuple[str, ...]:
    """Names of the lists of a `FieldStatistics`."""
    return tuple(field.name for field in fields(data.FieldStatistics) if field.name != "count")


def _joined(columns: "list[dict[str, np.ndarray]]") -> "data.FieldStatistics":
    known = [key for key in _lists() if key in _RELEASED or (columns and all(key in column for column in columns))]
    lists: dict[str, Any] = {
        key: tuple((str if key == "entries" else float)(value) for column in columns for value in column[key])
        for key in known
    }
    return data.FieldStatistics(min((int(column["count"][0]) for column in columns), default=0), **lists)


def _column(values: Mapping[str, Any], name: str, source: "data.Source") -> dict[str, np.ndarray]:
    """Lists of one entry: under its own name or, for part of a column, cut out of the whole column's."""
    own = name in values or not name.endswith("]")
    entry, start = values.get(name if own else source.key, {}), 0 if own else source.start
    found = {"count": np.ravel(entry.get("count", [0]))}
    for key in _lists():
        numbers = np.ravel(entry.get(key, []))[start : start + source.size]
        if len(numbers) == source.size:
            found[key] = numbers
        elif key in _RELEASED:
            raise ValueError(f"{name}.{key}: expected {source.size} numbers, got {entry.get(key)!r}")
    return found


def _entries(robot: "data.Robot") -> "Iterator[tuple[str, str, data.Source, int]]":
    """Group, name in the file, source and first dimension of every part of state and action."""
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
