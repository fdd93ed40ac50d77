"""Moments and true quantiles of a stream of rows, in bounded memory and in any order."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from moteur.data.multiset import Multiset

LIMIT = 65_536
_FOLD_ROWS = 65_536


class Distribution:
    """What is known about rows of numbers: count, mean, spread, extremes, and how often each value came.

    Moments are float64, each batch by two passes, batches combined by Chan's update, so nothing cancels. Values are
    counted per dimension in a `Multiset` of at most `limit` entries (16 bytes each: 1 MiB a dimension), which coarsens
    when there are more distinct values. The order of `update` and `merge` changes moments only by rounding, and
    quantiles not at all.

    Quantiles are order statistics with linear interpolation, as in `numpy.quantile`. While every value has an entry
    they are exact. After that, the bins around the wanted ranks are known, and a second pass over the same rows through
    `refinement` makes them exact again.

    Args:
        dims: Dimensions of a row.
        limit: Most entries to keep for each dimension.

    Example:
        >>> left, right = Distribution(1), Distribution(1)
        >>> left.update(np.array([[1.0], [2.0]]))
        >>> right.update(np.array([[6.0]]))
        >>> left.merge(right)
        >>> left.mean.tolist(), left.quantiles([0.5]).tolist()
        ([3.0], [[2.0]])
    """

    def __init__(self, dims: int, *, limit: int = LIMIT) -> None:
        self.count = 0
        self.mean: Float64[np.ndarray, " dim"] = np.zeros(dims)
        self.squares: Float64[np.ndarray, " dim"] = np.zeros(dims)
        self.min: Float64[np.ndarray, " dim"] = np.full(dims, np.inf)
        self.max: Float64[np.ndarray, " dim"] = np.full(dims, -np.inf)
        self.values = [Multiset(limit) for _ in range(dims)]
        self._pending: list[np.ndarray] = []

    @property
    def std(self) -> Float64[np.ndarray, " dim"]:
        """Standard deviation, dividing by the count."""
        return np.sqrt(self.squares / max(self.count, 1))

    def update(self, rows: Float[np.ndarray, "row dim"]) -> None:
        """Take in a batch of rows.

        Raises:
            ValueError: A value is not finite, or the rows have another width.
        """
        if rows.shape[1] != len(self.values):
            raise ValueError(f"rows must have {len(self.values)} dimensions, got {rows.shape[1]}")
        if not np.isfinite(rows).all():
            raise ValueError(f"rows must be finite, got {int((~np.isfinite(rows)).sum())} values that are not")
        if not len(rows):
            return
        wide = rows.astype(np.float64)
        mean = wide.mean(axis=0)
        self._combine(len(wide), mean, ((wide - mean) ** 2).sum(axis=0), wide.min(axis=0), wide.max(axis=0))
        self._pending.append(wide)
        if sum(len(batch) for batch in self._pending) >= _FOLD_ROWS:
            self.fold()

    def merge(self, other: "Distribution") -> None:
        """Take in what another distribution has seen.

        Raises:
            ValueError: It has another number of dimensions.
        """
        if len(other.values) != len(self.values):
            raise ValueError(f"other must have {len(self.values)} dimensions, got {len(other.values)}")
        self.fold()
        other.fold()
        if other.count:
            self._combine(other.count, other.mean, other.squares, other.min, other.max)
        for mine, theirs in zip(self.values, other.values, strict=True):
            mine.merge(theirs)

    def fold(self) -> None:
        """Count the rows that wait to be counted, so that the object is as small as it gets."""
        if self._pending:
            rows = np.concatenate(self._pending)
            self._pending = []
            for dim, values in enumerate(self.values):
                values.add(rows[:, dim])

    def needs_refinement(self, points: Sequence[float]) -> bool:
        """Whether a second pass is needed to know these quantiles exactly."""
        self.fold()
        return any(values.bins(_ranks(points, self.count)).size for values in self.values)

    def refinement(self, points: Sequence[float]) -> "Refinement":
        """Return an empty collection for a second pass over the same rows."""
        self.fold()
        return Refinement(self, points)

    def quantiles(
        self, points: Sequence[float], refinement: "Refinement | None" = None
    ) -> Float64[np.ndarray, "point dim"]:
        """Order statistics at these fractions, interpolated linearly.

        Raises:
            ValueError: There are no rows, or a second pass is needed and was not given.
        """
        if not self.count:
            raise ValueError("a distribution without rows has no quantiles")
        if refinement is None and self.needs_refinement(points):
            raise ValueError("quantiles need a second pass here: fill a refinement with the same rows and pass it on")
        self.fold()
        position = np.asarray(points, dtype=np.float64) * (self.count - 1)
        low, high = np.floor(position).astype(np.int64), np.ceil(position).astype(np.int64)
        columns: list[np.ndarray] = []
        for dim, values in enumerate(self.values):
            fine = refinement.values[dim] if refinement else None
            below, above = values.at(low, fine), values.at(high, fine)
            columns.append(below + (above - below) * (position - low))
        return np.stack(columns, axis=1) if columns else np.zeros((len(points), 0))

    def _combine(self, count: int, mean: np.ndarray, squares: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        total, difference = self.count + count, mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + squares + difference**2 * (self.count * (count / total))
        self.min, self.max = np.minimum(self.min, low), np.maximum(self.max, high)
        self.count = total


class Refinement:
    """Values near the wanted quantiles, at full resolution; filled by a second pass over the same rows.

    Args:
        coarse: The distribution of the first pass.
        points: The quantiles that are wanted.
    """

    def __init__(self, coarse: Distribution, points: Sequence[float]) -> None:
        self._coarse = coarse.values
        self._bins = [values.bins(_ranks(points, coarse.count)) for values in coarse.values]
        self.values = [Multiset(None) for _ in coarse.values]

    def update(self, rows: Float[np.ndarray, "row dim"]) -> None:
        """Take in a batch of rows."""
        wide = rows.astype(np.float64)
        for dim, bins in enumerate(self._bins):
            if bins.size:
                column = wide[:, dim]
                self.values[dim].add(column[np.isin(self._coarse[dim].bin_of(column), bins)])

    def emptied(self) -> "Refinement":
        """Return a collection that looks for the same values and has none yet."""
        copy = Refinement.__new__(Refinement)
        copy._coarse, copy._bins = self._coarse, self._bins  # noqa: SLF001  # the same class
        copy.values = [Multiset(None) for _ in self.values]
        return copy

    def fold(self) -> None:
        """Nothing waits here; a distribution has the same method."""

    def merge(self, other: "Refinement") -> None:
        """Take in what another pass over other rows has collected."""
        for mine, theirs in zip(self.values, other.values, strict=True):
            mine.merge(theirs)


def _ranks(points: Sequence[float], count: int) -> np.ndarray:
    position = np.asarray(points, dtype=np.float64) * max(count - 1, 0)
    return np.unique(np.concatenate([np.floor(position), np.ceil(position)])).astype(np.int64)
