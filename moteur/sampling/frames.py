"""Index of the usable frames of several datasets; its memory grows with episodes, not with frames."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moteur.sampling.random_access import fingerprint

_LARGEST = 2**32


class FrameIndex:
    """Numbering of the usable frames of several datasets, given as in `EpochOrder`.

    Attributes:
        names: Names of the datasets, sorted; a dataset's id is its place in here.
        counts: Number of usable frames of each dataset.
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
        # One number line over all datasets: frame `first[i] + n` stands at `until[i - 1] + n`.
        self._first = np.concatenate([r[:, 0] for r in ranges])
        self._until: NDArray[np.int64] = np.concatenate(lengths).cumsum()
        self._offset = self.counts.cumsum() - self.counts
        self.fingerprint = fingerprint(
            "\0".join(self.names).encode(), *(part.data for part in (self._first, self._until, self.counts))
        )

    def locate(self, dataset: NDArray[np.int64], nth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame numbers of the n-th usable frames (from 0) of datasets given by id.

        Raises:
            ValueError: A dataset does not have that many usable frames; the next one's would be found.
        """
        if ((nth < 0) | (nth >= self.counts[dataset])).any():
            raise ValueError(f"nth: expected numbers from 0 to below the counts of their datasets, got {nth}")
        line = self._offset[dataset] + nth
        piece = np.searchsorted(self._until, line, side="right")
        return self._first[piece] + line - np.where(piece > 0, self._until[piece - 1], 0)


def _ranges(name: str, frames: int | ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(frames)
    ranges = np.stack([np.zeros_like(array), array])[None] if array.ndim == 0 else array
    if ranges.dtype.kind not in "iu" or ranges.ndim != 2 or ranges.shape[1] != 2 or not len(ranges):  # noqa: PLR2004  # first and one past last
        raise ValueError(
            f"frames: expected a number of frames or integer ranges of shape (episodes, 2) for {name!r}, "
            f"got {array.dtype} of shape {tuple(array.shape)}"
        )
    ranges = ranges.astype(np.int64, copy=False)
    first, until = ranges.T
    wrong = (first >= until) | (first < np.concatenate([[0], until[:-1]]))
    if wrong.any():
        shown = ", ".join(str(tuple(pair)) for pair in ranges[wrong][:3].tolist())
        raise ValueError(f"frames: expected ascending, non-empty, disjoint ranges for {name!r}, got {shown}")
    if (count := (until - first).sum()) >= _LARGEST:
        raise ValueError(f"frames: expected fewer than 2^32 frames in {name!r}, got {count}")
    return ranges
