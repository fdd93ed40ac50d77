"""Statistics of a robot's state and actions: their files, merging them, and the normalisation that they define."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from jaxtyping import Float, Float64
from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor

from moteur.data.lerobot.stats import QUANTILES, merge_summaries
from moteur.files import parse, read_json, schema_of_fields, write_whole

_MERGED = ("mean", "std", "min", "max")
_Numbers = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
Mode = Literal["mean_std", "min_max", "quantiles", "none"]
RELEASED_EPSILON = 1e-6


@dataclass(frozen=True, repr=False)
class FieldStatistics:
    """Statistics of each dimension of a state or of the actions of a chunk.

    The standard deviation divides by the count. Below `q01` lie 1 % of the rows, and so on; quantiles are None if
    unknown, as in released files. See `compute_statistics` for their error.

    Attributes:
        count: Number of rows.
        entries: What each dimension is, as in `Robot.state_entries` and `Robot.action_entries`; None if unknown, as in
            released files.

    Raises:
        ValueError: A list holds other than finite numbers or has another length than the mean, a deviation is negative,
            or a minimum is above the maximum.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=0)]
    mean: _Numbers
    std: tuple[Annotated[float, Field(allow_inf_nan=False, ge=0)], ...]
    min: _Numbers
    max: _Numbers
    q01: _Numbers | None = None
    q10: _Numbers | None = None
    q50: _Numbers | None = None
    q90: _Numbers | None = None
    q99: _Numbers | None = None
    entries: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        parse(_FIELDS, asdict(self), strict=True)
        for name in (*_MERGED, *QUANTILES, "entries"):
            values = getattr(self, name)
            if values is not None and len(values) != self.dims:
                raise ValueError(f"{name}: expected {self.dims} entries, as many as of the mean, got {len(values)}")
        for dim, (least, most) in enumerate(zip(self.min, self.max, strict=True)):
            if least > most:
                raise ValueError(f"min: expected at most the max, {most}, in dimension {dim}, got {least}")

    def __repr__(self) -> str:
        return f"FieldStatistics({self.dims} dimensions, {self.count:,} rows)"

    @property
    def dims(self) -> int:
        """Number of dimensions."""
        return len(self.mean)


_FIELDS = schema_of_fields(FieldStatistics)


@dataclass(frozen=True, repr=False)
class RobotStatistics:
    """Statistics of one robot.

    Attributes:
        robot: Name of the robot's schema.
        chunk: Length of the action chunks: relative actions spread further in longer chunks.
        state: Of the state at every frame, absolute.
        action: Of every real step of every chunk, relative where the schema says so; None for data without actions.

    Examples:
        >>> state = FieldStatistics(count=1000, mean=(0.5,), std=(0.1,), min=(0.0,), max=(1.0,))
        >>> statistics = RobotStatistics("one_joint", chunk=50, state=state, action=None)
        >>> statistics
        RobotStatistics('one_joint', chunks of 50 steps, state: 1 dimensions, 1,000 rows, action: none)
        >>> RobotStatistics.from_dict(statistics.to_dict()) == statistics
        True
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    robot: str
    chunk: int
    state: FieldStatistics
    action: FieldStatistics | None

    def __repr__(self) -> str:
        groups = (("state", self.state), ("action", self.action))
        told = [f"{name}: {f'{of.dims} dimensions, {of.count:,} rows' if of else 'none'}" for name, of in groups]
        return f"RobotStatistics({self.robot!r}, chunks of {self.chunk} steps, {', '.join(told)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON or a checkpoint; `from_dict` restores the statistics to the last bit."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: object) -> "RobotStatistics":
        """Build statistics from plain values; an error names the field."""
        return parse(_SCHEMA, values, "statistics", strict=True)

    def save(self, path: Path | str) -> None:
        """Write a JSON file, atomically."""
        write_whole(Path(path), json.dumps(self.to_dict(), indent=2))

    @classmethod
    def load(cls, path: Path | str) -> "RobotStatistics":
        """Read a JSON file; an error names the file and the field."""
        return parse(_SCHEMA, read_json(Path(path)), path, strict=True)

    @classmethod
    def merge(cls, parts: Sequence["RobotStatistics"]) -> "RobotStatistics":
        """Merge statistics of disjoint data, computed on several machines, for example.

        Counts, extremes, means and standard deviations are those of all data, to rounding. Quantiles cannot be merged
        and are None; `compute_statistics` over all sets at once has them.

        Args:
            parts: Statistics of one robot, chunk length and choice of columns.
        """
        kinds = {(part.robot, part.chunk, part.state.dims, part.action.dims if part.action else None) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"parts: expected one robot, chunk length and size, got {sorted(kinds, key=str)}")
        first, actions = parts[0], [part.action for part in parts if part.action is not None]
        state = _merged([part.state for part in parts])
        return cls(first.robot, first.chunk, state, _merged(actions) if actions else None)


_SCHEMA = TypeAdapter(RobotStatistics)


def _merged(parts: Sequence[FieldStatistics]) -> FieldStatistics:
    known = {part.entries for part in parts if part.entries is not None}
    if len(known) > 1:
        raise ValueError(f"parts: expected the same columns, got {sorted(known)}")
    merged = merge_summaries([asdict(part) | {"count": [part.count]} for part in parts])
    entries = parts[0].entries if all(part.entries for part in parts) else None
    return FieldStatistics(merged["count"][0], *(tuple(merged[name]) for name in _MERGED), entries=entries)


class Normalizer:
    r"""Maps values to $(x - \text{offset}) / \text{scale}$ and back.

    | mode | offset | scale |
    |---|---|---|
    | `mean_std` | mean | std + 1e-6 (as released) |
    | `min_max` | (min + max) / 2 | (max − min) / 2: the range becomes [−1, 1] |
    | `quantiles` | (q01 + q99) / 2 | (q99 − q01) / 2; values outside are not clipped |
    | `none` | 0 | 1 |

    A dimension whose spread is below 1e-6 has a scale of 1: the released code divides by 1e-6 there, which turns the
    last bit of a sensor into a value of one. Actions do want that (`hold`): a prediction for a joint that stood still
    in the data is multiplied by 1e-6, and the joint holds still. Where the smallest and the largest value are equal,
    the offset is that value, so that it maps to exactly 0. Where `quantiles` has q01 equal to q99 while other values
    occur, it uses the range from minimum to maximum. Both directions compute in float64 and invert each other to
    rounding.

    Args:
        statistics: Statistics of the values.
        mode: Name of the map.
        hold: Scale dimensions of a spread below 1e-6 by 1e-6, as released. For actions.

    Raises:
        ValueError: The mode is not one of these, or needs quantiles that the statistics do not have.

    Examples:
        >>> statistics = FieldStatistics(3, mean=(1.0, 5.0), std=(2.0, 0.0), min=(-1.0, 5.0), max=(3.0, 5.0))
        >>> normalizer = Normalizer(statistics, mode="min_max")
        >>> normalizer(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """

    def __init__(self, statistics: FieldStatistics, *, mode: Mode = "mean_std", hold: bool = False) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
        least, most = _tensor(statistics.min), _tensor(statistics.max)
        if mode == "none":
            offset, scale = torch.zeros_like(least), torch.ones_like(least)
        elif mode == "mean_std":
            # The mean of equal numbers is rounded, and so their deviation is not quite 0.
            spread = torch.where(least == most, 0, _tensor(statistics.std))
            offset, scale = _tensor(statistics.mean), _kept(spread, spread + RELEASED_EPSILON, hold=hold)
        else:
            low, high = least, most
            if mode == "quantiles":
                if statistics.q01 is None or statistics.q99 is None:
                    raise ValueError("statistics: expected quantiles for the mode 'quantiles', got none")
                low, high = _tensor(statistics.q01), _tensor(statistics.q99)
            spread = torch.where(high - low < RELEASED_EPSILON, most - least, high - low)
            offset, scale = (low + high) / 2, _kept(spread, spread / 2, hold=hold)
        if mode != "none":
            offset = torch.where(least == most, least, offset)
        self.offset: Float64[Tensor, " dim"] = offset
        self.scale: Float64[Tensor, " dim"] = scale

    def __call__(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Normalise values, in float64 on their device."""
        return (values.double() - self.offset.to(values.device)) / self.scale.to(values.device)

    def inverse(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Undo the normalisation, in float64 on the values' device."""
        return values.double() * self.scale.to(values.device) + self.offset.to(values.device)


def _kept(spread: Tensor, scale: Tensor, *, hold: bool) -> Tensor:
    return torch.where(spread < RELEASED_EPSILON, scale.clamp(min=RELEASED_EPSILON) if hold else 1.0, scale)


def _tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
