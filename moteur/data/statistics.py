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

from moteur.data.convention import Convention, check_convention
from moteur.data.lerobot.stats import QUANTILES, merge_summaries
from moteur.files import parse, read_json, schema_of_fields, write_whole

_MERGED = ("mean", "std", "min", "max")
_Numbers = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
Mode = Literal["mean_std", "min_max", "quantiles", "none"]
RELEASED_EPSILON = 1e-6
_LEROBOT_EPSILON = 1e-8


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
    r"""Maps values to $(x - \text{offset}) / \text{scale} - \text{shift}$ and back.

    | mode | convention | offset | scale | shift |
    |---|---|---|---|---|
    | `mean_std` | `internvla_a1`, `openpi` | mean | std + 1e-6 | 0 |
    | | `lerobot` | mean | std + 1e-8; std alone on the way back | 0 |
    | `min_max` | `internvla_a1` | (min + max) / 2 | (max − min) / 2: the range becomes [−1, 1] | 0 |
    | | `lerobot` | min | (max − min) / 2 | 1 |
    | `quantiles` | `internvla_a1` | (q01 + q99) / 2 | (q99 − q01) / 2 | 0 |
    | | `openpi` | q01 | (q99 − q01 + 1e-6) / 2 | 1 |
    | | `lerobot` | q01 | (q99 − q01) / 2 | 1 |
    | `none` | any | 0 | 1 | 0 |

    Nothing is clipped. Both directions compute in float64 and, but for `mean_std` of `lerobot`, invert each other to
    rounding. `openpi` has no `min_max`. Where the range or the quantiles of a dimension are equal, `lerobot` takes 1e-8
    for their distance.

    In `internvla_a1` a dimension whose spread is below 1e-6 has a scale of 1: the released code divides by 1e-6 there,
    which turns the last bit of a sensor into a value of one. Actions do want that (`hold`): a prediction for a joint
    that stood still in the data is multiplied by 1e-6, and the joint holds still. Where the smallest and the largest
    value are equal, the offset is that value, so that it maps to exactly 0. Where `quantiles` has q01 equal to q99
    while other values occur, it uses the range from minimum to maximum.

    Args:
        statistics: Statistics of the values.
        mode: Name of the map.
        convention: Whose map it is.
        hold: Scale dimensions of a spread below 1e-6 by 1e-6, as released. For actions.

    Raises:
        ValueError: There is no such mode or convention, the convention does not have the mode, or the mode needs
            quantiles that the statistics do not have.

    Examples:
        >>> statistics = FieldStatistics(3, mean=(1.0, 5.0), std=(2.0, 0.0), min=(-1.0, 5.0), max=(3.0, 5.0))
        >>> normalizer = Normalizer(statistics, mode="min_max")
        >>> normalizer(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """

    def __init__(
        self,
        statistics: FieldStatistics,
        *,
        mode: Mode = "mean_std",
        convention: Convention = "internvla_a1",
        hold: bool = False,
    ) -> None:
        check_convention(convention)
        modes = [known for known in get_args(Mode) if (convention, known) != ("openpi", "min_max")]
        if mode not in modes:
            raise ValueError(f"mode: expected one of {tuple(modes)}, got {mode!r}")
        self.shift = 0.0
        if mode == "none":
            offset = torch.zeros(statistics.dims, dtype=torch.float64)
            scale = back = torch.ones_like(offset)
        elif convention == "internvla_a1":
            offset, scale = _released(statistics, mode, hold=hold)
            back = scale
        elif mode == "mean_std":
            offset, std = _tensor(statistics.mean), _tensor(statistics.std)
            scale = std + (RELEASED_EPSILON if convention == "openpi" else _LEROBOT_EPSILON)
            back = scale if convention == "openpi" else std
        else:
            offset, most = _range(statistics, mode)
            spread = most - offset
            if convention == "openpi":
                spread = spread + RELEASED_EPSILON
            else:
                spread = torch.where(spread == 0, _LEROBOT_EPSILON, spread)
            # Not around the middle: q01 has to become exactly -1, whose bin in the prompt of π0.5 is not that of less.
            scale, self.shift = spread / 2, 1.0
            back = scale
        self.offset: Float64[Tensor, " dim"] = offset
        self.scale: Float64[Tensor, " dim"] = scale
        self._back = back

    def __call__(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Normalise values, in float64 on their device."""
        return (values.double() - self.offset.to(values.device)) / self.scale.to(values.device) - self.shift

    def inverse(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Undo the normalisation, in float64 on the values' device."""
        return (values.double() + self.shift) * self._back.to(values.device) + self.offset.to(values.device)


def _released(statistics: FieldStatistics, mode: Mode, *, hold: bool) -> tuple[Tensor, Tensor]:
    """Offset and scale as InternVLA-A1 has them, but for dimensions that hardly vary."""
    least, most = _tensor(statistics.min), _tensor(statistics.max)
    if mode == "mean_std":
        # The mean of equal numbers is rounded, and so their deviation is not quite 0.
        spread = torch.where(least == most, 0, _tensor(statistics.std))
        offset, scale = _tensor(statistics.mean), _kept(spread, spread + RELEASED_EPSILON, hold=hold)
    else:
        low, high = _range(statistics, mode)
        spread = torch.where(high - low < RELEASED_EPSILON, most - least, high - low)
        offset, scale = (low + high) / 2, _kept(spread, spread / 2, hold=hold)
    return torch.where(least == most, least, offset), scale


def _range(statistics: FieldStatistics, mode: Mode) -> tuple[Tensor, Tensor]:
    """What becomes -1 and 1."""
    low, high = (statistics.q01, statistics.q99) if mode == "quantiles" else (statistics.min, statistics.max)
    if low is None or high is None:
        raise ValueError("statistics: expected quantiles for the mode 'quantiles', got none")
    return _tensor(low), _tensor(high)


def _kept(spread: Tensor, scale: Tensor, *, hold: bool) -> Tensor:
    return torch.where(spread < RELEASED_EPSILON, scale.clamp(min=RELEASED_EPSILON) if hold else 1.0, scale)


def _tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
