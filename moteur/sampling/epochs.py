"""Epochs over several datasets and ranks in which each frame comes once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moteur.sampling.frames import FrameIndex
from moteur.sampling.lpt import split_exactly
from moteur.sampling.random_access import (
    Purpose,
    check_batch_size,
    check_positions,
    check_rank,
    describe_batches,
    fingerprint,
    permuted,
)


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
        batch_size: Frames in a row that come from one dataset, for batches of one set, made up anew each epoch. Ranks
            then share out whole batches. Where a dataset does not divide into batches, `drop_last` decides as well:
            False fills its last batch with other frames of it, so that up to `batch_size` - 1 come twice; True leaves
            as many out, different ones each epoch. `None` mixes the datasets.

    Attributes:
        names: Names of all datasets, sorted; `draw` returns places in here.
        length: Frames that each rank reads in an epoch.
        batch_size: As given.
        repeated: Number of frames of this rank that are repetitions, at the end: 0 or 1; in batches of one set 0 or
            `batch_size`, not counting those that fill a batch.
        fingerprint: 63 bits that change with anything but the rank.

    Raises:
        ValueError: No dataset, ranges as `frames` forbids, a rank or seed out of range, fewer frames (or batches) than
            ranks, a batch of fewer than one, or with `drop_last` a dataset of less than a batch.

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
        batch_size: int | None = None,
    ) -> None:
        check_rank(rank, ranks, seed)
        check_batch_size(batch_size)
        self._frames, self.batch_size = FrameIndex(frames), batch_size
        self.names = self._frames.names
        # What ranks share out and shuffle: frames, or batches of them.
        size = self._size = batch_size or 1
        self._units = self._frames.counts // size if drop_last else -(-self._frames.counts // size)
        counts: list[int] = self._units.tolist()
        if 0 in counts:
            short = counts.index(0)
            raise ValueError(
                f"frames: expected at least a batch of {size} in {self.names[short]!r} with drop_last=True, "
                f"got {self._frames.counts[short]}"
            )
        total = sum(counts)
        if total < ranks:
            kind = "frames" if batch_size is None else f"batches of {size} frames"
            raise ValueError(f"ranks: expected at most as many as {kind}, {total}, got {ranks}")
        quotas = tuple(total // ranks + (r < total % ranks) for r in range(ranks))
        self.length = (min(quotas) if drop_last else max(quotas)) * size
        self.repeated = max(0, self.length - quotas[rank] * size)
        self._seed, self._rank, self._ranks, self._held = seed, rank, ranks, quotas[rank]
        split = split_exactly(tuple(zip(self.names, counts, strict=True)), quotas)
        self._dataset, parts = np.array(split[rank]).T
        # A dataset's ranks take consecutive slices of what is shuffled of it, in the order of the ranks.
        before = np.zeros_like(self._units)
        for pieces in split[:rank]:
            for place, part in pieces:
                before[place] += part
        self._slice = before[self._dataset]
        self._until = parts.cumsum()
        self._shared: list[int] = self._dataset[parts < self._units[self._dataset]].tolist()
        uneven = ("drop" if drop_last else "repeat") + ("" if batch_size is None else f" {batch_size}")
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
        positions = np.arange(start, stop)
        own = permuted(
            positions // self._size % self._held,
            self._held,
            seed=self._seed,
            purpose=Purpose.RANK_ORDER,
            epoch=epoch,
            stream=self._rank,
        )
        piece = np.searchsorted(self._until, own, side="right")
        nth = own - np.where(piece > 0, self._until[piece - 1], 0) + self._slice[piece]
        dataset = self._dataset[piece]
        self._shuffle(nth, dataset, self._shared, self._units, purpose=Purpose.DATASET_ORDER, epoch=epoch)
        if self.batch_size is not None:
            counts = self._frames.counts
            nth = (nth * self._size + positions % self._size) % counts[dataset]
            self._shuffle(nth, dataset, np.unique(dataset).tolist(), counts, purpose=Purpose.BATCHES, epoch=epoch)
        return dataset, self._frames.locate(dataset, nth)

    def _shuffle(
        self,
        nth: NDArray[np.int64],
        dataset: NDArray[np.int64],
        places: list[int],
        counts: NDArray[np.int64],
        *,
        purpose: Purpose,
        epoch: int,
    ) -> None:
        """Exchange `nth`, in place, for elements of a permutation of each of these datasets."""
        for place in places:
            here = dataset == place
            nth[here] = permuted(
                nth[here], int(counts[place]), seed=self._seed, purpose=purpose, epoch=epoch, stream=place
            )

    def __repr__(self) -> str:
        return (
            f"EpochOrder({len(self.names)} datasets, {sum(self._frames.counts.tolist()):,} frames; "
            f"rank {self._rank} of {self._ranks} reads {self.length:,} from {len(self.datasets)} datasets"
            f"{describe_batches(self.batch_size)}; seed={self._seed})"
        )
