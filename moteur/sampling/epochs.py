"""Epochs over several datasets and ranks in which each frame comes once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moteur.sampling.frames import FrameIndex
from moteur.sampling.lpt import split_exactly
from moteur.sampling.random_access import Purpose, check_positions, check_rank, fingerprint, permuted


class EpochOrder:
    """Order in which each rank reads all frames of all datasets, once per epoch.

    Frames are split over the ranks so that each holds its share to within one frame. A rank opens the datasets that
    `assign` gives it, plus at most a few pieces of others. It reads its share in a new random order each epoch. A
    dataset that several ranks share is shuffled and cut anew each epoch, so that over the epochs each of them reads all
    of it.

    The frame at (seed, epoch, rank, position) is a function of those four numbers, computed in constant time and
    without a table of frames.

    Args:
        frames: For each dataset its number of frames; or its usable ranges, an array of shape (episodes, 2) with the
            first and one-past-last frame of each, ascending and without overlap.
        rank: This rank, from 0.
        ranks: Number of ranks R.
        seed: Random seed in [0, 2^64).
        drop_last: All ranks make the same number of steps. If N frames do not divide by R: False lets each rank with
            one frame fewer read its first frame again at the end; True leaves out the last frame of the ranks with one
            more, a different one each epoch.

    Attributes:
        names: Names of all datasets, sorted; `draw` returns places in here.
        length: Frames that each rank reads in an epoch.
        repeated: Number of frames of this rank that are repetitions, at the end: 0 or 1.
        fingerprint: 63 bits that change with anything but the rank.

    Raises:
        ValueError: No dataset, ranges as `frames` forbids, a rank or seed out of range, fewer frames than ranks.

    Examples:
        >>> order = EpochOrder({"a": 3, "b": 2}, seed=1)
        >>> dataset, frame = order.draw(epoch=0, start=0, stop=5)
        >>> sorted((order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist()))
        [('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1)]
    """

    def __init__(
        self,
        frames: Mapping[str, int | ArrayLike],
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_rank(rank, ranks, seed)
        self._frames = FrameIndex(frames)
        self.names = self._frames.names
        counts: list[int] = self._frames.counts.tolist()
        total = sum(counts)
        if total < ranks:
            raise ValueError(f"ranks: expected at most as many as frames, {total}, got {ranks}")
        quotas = tuple(total // ranks + (r < total % ranks) for r in range(ranks))
        self.length = min(quotas) if drop_last else max(quotas)
        self.repeated = max(0, self.length - quotas[rank])
        self._seed, self._rank, self._ranks, self._held = seed, rank, ranks, quotas[rank]
        split = split_exactly(tuple(zip(self.names, counts, strict=True)), quotas)
        self._dataset, parts = np.array(split[rank]).T
        # A dataset's ranks take consecutive slices of its shuffled frames, in the order of the ranks.
        before = np.zeros_like(self._frames.counts)
        for pieces in split[:rank]:
            for place, part in pieces:
                before[place] += part
        self._slice = before[self._dataset]
        self._until = parts.cumsum()
        self._shared: list[int] = np.flatnonzero(parts < self._frames.counts[self._dataset]).tolist()
        uneven = "drop" if drop_last else "repeat"
        self.fingerprint = fingerprint(f"epochs/1 {self._frames.fingerprint} {ranks} {seed} {uneven}".encode())

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that this rank reads."""
        return tuple(self.names[place] for place in self._dataset)

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch.

        Raises:
            ValueError: An epoch or position that does not exist.
        """
        check_positions(epoch, start, stop, self.length)
        positions = np.arange(start, stop) % self._held
        own = permuted(
            positions, self._held, seed=self._seed, purpose=Purpose.RANK_ORDER, epoch=epoch, stream=self._rank
        )
        piece = np.searchsorted(self._until, own, side="right")
        nth = own - np.where(piece > 0, self._until[piece - 1], 0) + self._slice[piece]
        dataset = self._dataset[piece]
        for shared in self._shared:
            here = piece == shared
            place = int(self._dataset[shared])
            nth[here] = permuted(
                nth[here],
                int(self._frames.counts[place]),
                seed=self._seed,
                purpose=Purpose.DATASET_ORDER,
                epoch=epoch,
                stream=place,
            )
        return dataset, self._frames.locate(dataset, nth)

    def __repr__(self) -> str:
        return (
            f"EpochOrder({len(self.names)} datasets, {sum(self._frames.counts.tolist()):,} frames; "
            f"rank {self._rank} of {self._ranks} reads {self.length:,} from {len(self.datasets)} datasets; "
            f"seed={self._seed})"
        )
