"""Which frames of which datasets may be drawn, in memory that grows with episodes."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LARGEST = 2**32


class FrameIndex:
    """The usable frames of some datasets.

    Args:
        frames: For each dataset its number of frames, all of which are used; or the ranges that are, an array of shape
            (episodes, 2) holding first and one-past-last frame of each, in ascending order and without overlap.

    Attributes:
        names: Names of the datasets, sorted; a dataset's id is its place in here.
        counts: Usable frames of each dataset.
        fingerprint: 63 bits that change when a name or a range does.

    Raises:
        ValueError: No dataset, a dataset without frames or with 2^32 or more, ranges that are empty, overlap or have
            another shape.

    Examples:
        >>> index = FrameIndex({"b": [[10, 12], [20, 23]], "a": 4})
        >>> index.names, index.counts.tolist()
        (('a', 'b'), [4, 5])
        >>> index.locate(np.array([1, 1, 0]), np.array([0, 4, 3])).tolist()
        [10, 22, 3]
    """

    def __init__(self, frames: Mapping[str, int | ArrayLike]) -> None:
        if not frames:
            raise ValueError("frames: expected at least one dataset, got none")
        self.names = tuple(sorted(frames))
        ranges = [_ranges(name, frames[name]) for name in self.names]
        lengths = [r[:, 1] - r[:, 0] for r in ranges]
        self.counts: NDArray[np.int64] = np.array([length.sum() for length in lengths])
        for name, count in zip(self.names, self.counts.tolist(), strict=True):
            if count >= _LARGEST:
                raise ValueError(f"frames: expected fewer than 2^32 frames in {name!r}, got {count}")
        # One number line over all datasets: frame `first[i] + n` stands at `until[i - 1] + n`.
        self._first = np.concatenate([r[:, 0] for r in ranges])
        self._until: NDArray[np.int64] = np.concatenate(lengths).cumsum()
        self._offset = self.counts.cumsum() - self.counts
        digest = hashlib.blake2b("\0".join(self.names).encode(), digest_size=8)
        for part in (self._first, self._until, self.counts):
            digest.update(part.data)
        self.fingerprint = int.from_bytes(digest.digest(), "big") >> 1

    def locate(self, dataset: NDArray[np.int64], nth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame numbers of the n-th usable frames (from 0) of datasets given by id."""
        line = self._offset[dataset] + nth
        piece = np.searchsorted(self._until, line, side="right")
        return self._first[piece] + line - np.where(piece > 0, self._until[piece - 1], 0)


def _ranges(name: str, frames: int | ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(frames)
    if array.dtype.kind not in "iu":
        raise ValueError(f"frames: expected whole numbers for {name!r}, got {array.dtype}")
    ranges = np.array([[0, array]], dtype=np.int64) if array.ndim == 0 else array.astype(np.int64, copy=False)
    if ranges.ndim != 2 or ranges.shape[1] != 2 or not len(ranges):  # noqa: PLR2004 - first and one past last
        raise ValueError(
            f"frames: expected a number of frames or ranges of shape (episodes, 2) for {name!r}, "
            f"got shape {tuple(array.shape)}"
        )
    flat = ranges.ravel()
    if flat[0] < 0 or (ranges[:, 0] >= ranges[:, 1]).any() or (np.diff(flat) < 0).any():
        raise ValueError(f"frames: expected ascending, non-empty, disjoint ranges for {name!r}, got {_shown(ranges)}")
    return ranges


def _shown(ranges: NDArray[np.int64]) -> str:
    """The first ranges that are out of order."""
    ends = np.concatenate([[0], ranges[:-1, 1]])
    wrong = (ranges[:, 0] >= ranges[:, 1]) | (ranges[:, 0] < ends)
    return ", ".join(str(tuple(pair)) for pair in ranges[wrong][:3].tolist())
