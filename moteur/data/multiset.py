"""How often each number came, coarsened when there are too many different ones."""

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_SIGN = np.uint64(1 << 63)


class Multiset:
    """Counts of numbers in ascending order, in at most `limit` entries.

    A float64 becomes an unsigned integer of the same order (sign bit flipped for positive numbers, all bits for
    negative ones). Dropping `shift` low bits of it merges neighbours into bins of nearly constant relative width. The
    shift is always the smallest that fits the limit, so the result does not depend on the order of additions and
    merges.

    Args:
        limit: Most entries to keep, or None to keep every value.

    Raises:
        ValueError: The limit is not positive.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit, self.shift = limit, 0
        self.keys: UInt64[np.ndarray, " entry"] = np.zeros(0, dtype=np.uint64)
        self.counts: Int64[np.ndarray, " entry"] = np.zeros(0, dtype=np.int64)

    def add(self, values: Float64[np.ndarray, " value"]) -> None:
        """Count these numbers."""
        keys, counts = np.unique(_ordered(values), return_counts=True)
        self._include(keys, counts, 0)

    def merge(self, other: "Multiset") -> None:
        """Count what another multiset has counted."""
        self._include(other.keys, other.counts, other.shift)

    def bin_of(self, values: Float64[np.ndarray, " value"]) -> UInt64[np.ndarray, " value"]:
        """Return the entry that each number belongs to."""
        return _ordered(values) >> np.uint64(self.shift)

    def bins(self, ranks: Int64[np.ndarray, " rank"]) -> UInt64[np.ndarray, " bin"]:
        """Return the entries around these ranks in which different numbers may have been merged."""
        if not self.shift or not self.keys.size:
            return np.zeros(0, dtype=np.uint64)
        return np.unique(self.keys[np.searchsorted(np.cumsum(self.counts), ranks, side="right")])

    def at(self, ranks: Int64[np.ndarray, " rank"], fine: "Multiset | None" = None) -> Float64[np.ndarray, " rank"]:
        """Return the numbers of these ranks (0 is the smallest), with those of merged entries looked up in `fine`."""
        ends = np.cumsum(self.counts)
        places = np.searchsorted(ends, ranks, side="right")
        if not self.shift or fine is None:
            return _number(self.keys[places])
        inside = ranks - (ends - self.counts)[places]
        # Entries before this one in `fine` are those of smaller bins: skip them, then count on.
        before = np.concatenate([[0], np.cumsum(fine.counts)])
        skipped = before[np.searchsorted(fine.keys >> np.uint64(self.shift), self.keys[places], side="left")]
        return _number(fine.keys[np.searchsorted(np.cumsum(fine.counts), skipped + inside, side="right")])

    def _include(self, keys: np.ndarray, counts: np.ndarray, shift: int) -> None:
        coarse = max(self.shift, shift)
        both = np.concatenate([self.keys >> np.uint64(coarse - self.shift), keys >> np.uint64(coarse - shift)])
        order = np.argsort(both, kind="stable")
        keys, counts = both[order], np.concatenate([self.counts, counts])[order]
        extra = 0
        while self.limit is not None and _distinct(keys >> np.uint64(extra)) > self.limit:
            extra += 1
        keys = keys >> np.uint64(extra)
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        self.keys, self.shift = keys[starts], coarse + extra
        self.counts = np.add.reduceat(counts, starts) if starts.size else counts


def _distinct(keys: np.ndarray) -> int:
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + 1 if keys.size else 0


def _ordered(values: np.ndarray) -> np.ndarray:
    bits = (values + 0.0).view(np.uint64)  # adding zero turns -0.0 into 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _number(keys: np.ndarray) -> np.ndarray:
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float64)
