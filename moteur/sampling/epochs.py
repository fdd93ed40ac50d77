"""Passes over several datasets in which each frame comes once."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moteur.sampling.balance import balance
from moteur.sampling.counters import Purpose, check_rank, check_seed, check_window
from moteur.sampling.frames import FrameIndex
from moteur.sampling.shuffle import shuffled

Uneven = Literal["repeat", "drop"]
"""What happens to the last round when frames do not divide by ranks."""


class EpochOrder:
    """What each rank reads, when all frames of all datasets are wanted once in each epoch.

    Frames are split over the ranks so that each holds its share to within one frame; a rank opens the datasets that
    `assign` gives it, plus at most a few pieces of others. It reads its share in a new random order each epoch. A
    dataset that several ranks share is shuffled and cut anew in each epoch, so that all of them come to see all of it.

    The frame at (seed, epoch, rank, position) is a function of those four numbers, found in constant time and without
    a table of frames.

    Args:
        frames: For each dataset its number of frames, or its usable ranges; see `FrameIndex`.
        rank: This rank, from 0.
        ranks: Number of ranks R.
        seed: Any number in [0, 2^64).
        uneven: All ranks make the same number of steps. If N frames do not divide by R, `"repeat"` lets the N mod R
            ranks with one frame more finish, while each other rank reads its first frame again; `"drop"` leaves out
            the last frame of those with one more, another one each epoch.

    Attributes:
        names: Names of all datasets, sorted; `draw` returns places in here.
        length: Frames that each rank reads in an epoch.
        repeated: How many of this rank's are repetitions, at the end: 0 or 1.
        fingerprint: 63 bits that change with anything but the rank.

    Raises:
        ValueError: A rank or seed out of range, an unknown `uneven`, fewer frames than ranks.

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
        uneven: Uneven = "repeat",
    ) -> None:
        check_rank(rank, ranks)
        check_seed(seed)
        if uneven not in ("repeat", "drop"):
            raise ValueError(f"uneven: expected 'repeat' or 'drop', got {uneven!r}")
        self._frames = FrameIndex(frames)
        self.names = self._frames.names
        counts: list[int] = self._frames.counts.tolist()
        total = sum(counts)
        if total < ranks:
            raise ValueError(f"ranks: expected at most as many as frames, {total}, got {ranks}")
        quotas = tuple(total // ranks + (r < total % ranks) for r in range(ranks))
        self.length = max(quotas) if uneven == "repeat" else min(quotas)
        self.repeated = max(0, self.length - quotas[rank])
        self._seed, self._rank, self._held = seed, rank, quotas[rank]
        split = balance(tuple(zip(self.names, counts, strict=True)), quotas)
        ids = {name: place for place, name in enumerate(self.names)}
        # A dataset's ranks take consecutive slices of its shuffled frames, in the order of the ranks.
        before = dict.fromkeys(self.names, 0)
        for pieces in split[:rank]:
            for name, part in pieces:
                before[name] += part
        self._dataset = np.array([ids[name] for name, _ in split[rank]])
        self._slice = np.array([before[name] for name, _ in split[rank]])
        parts = np.array([part for _, part in split[rank]])
        self._until = parts.cumsum()
        self._shared: list[int] = np.flatnonzero(parts < self._frames.counts[self._dataset]).tolist()
        identity = f"epochs/1 {self._frames.fingerprint} {ranks} {seed} {uneven}"
        self.fingerprint = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that this rank reads; the others it need not open."""
        return tuple(self.names[place] for place in self._dataset)

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch.

        Raises:
            ValueError: An epoch or position that does not exist.
        """
        check_window(epoch, start, stop, self.length)
        places = np.arange(start, stop) % self._held
        own = shuffled(places, self._held, seed=self._seed, purpose=Purpose.RANK_ORDER, epoch=epoch, stream=self._rank)
        piece = np.searchsorted(self._until, own, side="right")
        nth = own - np.where(piece > 0, self._until[piece - 1], 0) + self._slice[piece]
        dataset = self._dataset[piece]
        for shared in self._shared:
            here = piece == shared
            place = int(self._dataset[shared])
            nth[here] = shuffled(
                nth[here],
                int(self._frames.counts[place]),
                seed=self._seed,
                purpose=Purpose.DATASET_ORDER,
                epoch=epoch,
                stream=place,
            )
        return dataset, self._frames.locate(dataset, nth)
