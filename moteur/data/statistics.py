"""Statistics of a robot's state and actions, as they are stored in files and checkpoints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moteur.data.distribution import Distribution, Refinement
from moteur.data.files import write_whole

POINTS = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_LISTS = ("mean", "std", "min", "max", *POINTS, "entries")


@dataclass(frozen=True)
class FieldStatistics:
    """Statistics of every dimension of a state or of the actions of a chunk; the quantiles are None where not known.

    Attributes:
        count: Rows that were counted.
        mean: Mean.
        std: Standard deviation, dividing by the count.
        min: Smallest value.
        max: Largest value.
        q01: Value below which 1 % of the rows lie.
        q10: The same for 10 %.
        q50: Median.
        q90: The same for 90 %.
        q99: The same for 99 %.
        entries: What each dimension is, as `Robot.state_entries` and `Robot.action_entries` say; None where not known,
            as in released files.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...] | None = None
    q10: tuple[float, ...] | None = None
    q50: tuple[float, ...] | None = None
    q90: tuple[float, ...] | None = None
    q99: tuple[float, ...] | None = None
    entries: tuple[str, ...] | None = None

    @property
    def dims(self) -> int:
        """Number of dimensions."""
        return len(self.mean)


@dataclass(frozen=True)
class RobotStatistics:
    """Statistics of one robot.

    Attributes:
        robot: Name of the robot's schema.
        steps: Length of the action chunks they were taken over: relative actions spread further in longer chunks.
        state: Of the state at every frame, absolute.
        action: Of every real step of every chunk, relative where the schema says so; None for data without actions.
    """

    robot: str
    steps: int
    state: FieldStatistics
    action: FieldStatistics | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON or a checkpoint; floats survive exactly."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RobotStatistics":
        """Build from plain values.

        Raises:
            ValueError: A field is missing or unknown, or its lists differ in length.
        """
        try:
            action = values["action"]
            return cls(
                values["robot"], values["steps"], _field(values["state"]), None if action is None else _field(action)
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not statistics of a robot: {error!r}") from error

    def save(self, path: Path) -> None:
        """Write a JSON file; a killed process leaves the old one."""
        write_whole(path, json.dumps(self.to_dict(), indent=2))

    @classmethod
    def load(cls, path: Path) -> "RobotStatistics":
        """Read a JSON file.

        Raises:
            ValueError: The file is damaged; it is named.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


def finished(
    distribution: Distribution, refinement: Refinement | None, entries: tuple[str, ...] | None = None
) -> FieldStatistics:
    """Turn what two passes have found into statistics."""
    points = distribution.quantiles(list(POINTS.values()), refinement)
    return FieldStatistics(
        distribution.count,
        *(
            tuple(values.tolist())
            for values in (distribution.mean, distribution.std, distribution.min, distribution.max)
        ),
        **{name: tuple(row.tolist()) for name, row in zip(POINTS, points, strict=True)},
        entries=entries,
    )


def merge_statistics(parts: Sequence[RobotStatistics]) -> RobotStatistics:
    """Combine statistics of disjoint data of one robot, computed apart: on several machines, say.

    Counts, extremes, means and deviations are those of all data together, to rounding. Quantiles do not combine and are
    left out; `compute_statistics` over all sets at once has them.

    Args:
        parts: At least one; all of the same robot, chunk length and columns.

    Raises:
        ValueError: There are no parts, they do not belong together, or one does not say how many rows it counted.
    """
    kinds = {(part.robot, part.steps, part.state.dims, part.action.dims if part.action else None) for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"parts must be of one robot, chunk length and size, got {sorted(kinds, key=str)}")
    first, actions = parts[0], [part.action for part in parts if part.action is not None]
    state = _merged([part.state for part in parts])
    return RobotStatistics(first.robot, first.steps, state, _merged(actions) if actions else None)


def _merged(parts: Sequence[FieldStatistics]) -> FieldStatistics:
    if min(part.count for part in parts) < 1:
        raise ValueError(f"parts must count at least one row each, got {[part.count for part in parts]}")
    entries = [part.entries for part in parts]
    known = {names for names in entries if names is not None}
    if len(known) > 1:
        raise ValueError(f"parts must be of the same columns, got {sorted(known)}")
    count = sum(part.count for part in parts)
    share = np.array([[part.count / count] for part in parts])
    means, stds = np.array([part.mean for part in parts]), np.array([part.std for part in parts])
    mean = (share * means).sum(axis=0)
    std = np.sqrt((share * (stds**2 + (means - mean) ** 2)).sum(axis=0))
    low, high = np.min([part.min for part in parts], axis=0), np.max([part.max for part in parts], axis=0)
    named = None if None in entries else entries[0]
    return FieldStatistics(count, *(tuple(values.tolist()) for values in (mean, std, low, high)), entries=named)


def _field(values: Mapping[str, Any]) -> FieldStatistics:
    lists: dict[str, Any] = {
        name: tuple(value) for name, value in values.items() if name in _LISTS and value is not None
    }
    if len({len(value) for value in lists.values()}) != 1:
        raise ValueError(f"lists must be of one length, got { {name: len(value) for name, value in lists.items()} }")
    rest = {name: value for name, value in values.items() if name not in _LISTS}
    return FieldStatistics(**rest, **lists)
