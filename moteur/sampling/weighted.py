"""Draws from several datasets in given proportions."""

from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from numbers import Rational

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
    random_below,
    random_words,
)

_BLOCK = 4096  # part of the definition of the order: changing it changes every stream
_TICK_BITS = 48
_TICKS = 2**_TICK_BITS


class WeightedOrder:
    r"""Order in which each rank draws frames, with replacement and with given weights of the datasets.

    Every rank makes the same number of draws, but opens only the datasets that `assign` gives it, plus at most a few
    pieces of others. Its probability of drawing dataset d is $p_{rd}$, chosen such that

    $$\sum_d p_{rd} = 1, \qquad \frac{1}{R}\sum_r p_{rd} = w_d,$$

    so that the R ranks together draw in exactly the proportions w, for every R. Probabilities are whole multiples of
    2^-48; $w_d$ is met to within 2^-48 / R. Within a dataset every usable frame is equally likely.

    The draw at (seed, epoch, rank, position) is a function of those four numbers, computed in constant time.

    Args:
        frames: Frames of each dataset, as in `EpochOrder`.
        weights: Weight of each dataset; they need not sum to 1. A dataset of weight 0 is never drawn. None: the numbers
            of frames, so that every frame is equally likely.
        rank: This rank, from 0.
        ranks: Number of ranks R.
        seed: Random seed in [0, 2^64).
        draws: Draws that each rank makes in an epoch; `None` for one endless epoch.
        batch_size: Draws in a row that come from one dataset, for batches of one set; proportions stay the same. `None`
            chooses the dataset anew for every draw.

    Attributes:
        names: Names of all datasets, sorted; `draw` returns places in here.
        length, batch_size: `draws` and `batch_size`.
        probabilities: Probability of each dataset that this rank draws from, as exact fractions.
        fingerprint: 63 bits that change with anything but the rank.

    Raises:
        ValueError: No dataset, ranges as `frames` forbids, different datasets in `frames` and `weights`, a weight that
            is negative, not finite or too small beside the others, weights that are all 0, a rank or seed out of range,
            fewer than one draw, a batch of fewer than one.

    Examples:
        >>> frames, weights = {"large": 1000, "small": 10}, {"large": 0.9, "small": 0.1}
        >>> for rank in (0, 1):
        ...     order = WeightedOrder(frames, weights, rank=rank, ranks=2)
        ...     print({name: round(float(p), 6) for name, p in order.probabilities.items()})
        {'large': 1.0}
        {'large': 0.8, 'small': 0.2}
    """

    def __init__(
        self,
        frames: Mapping[str, int | ArrayLike],
        weights: Mapping[str, float] | None,
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        draws: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_rank(rank, ranks, seed)
        if weights is not None and set(frames) != set(weights):
            raise ValueError(
                f"weights: expected the datasets of frames, got {sorted(set(weights) - set(frames))} too many "
                f"and {sorted(set(frames) - set(weights))} too few"
            )
        if draws is not None and draws < 1:
            raise ValueError(f"draws: expected at least 1 or None, got {draws}")
        check_batch_size(batch_size)
        self._frames = FrameIndex(frames)
        self.names = self._frames.names
        self.length, self.batch_size = draws, batch_size
        self._seed, self._rank, self._ranks = seed, rank, ranks
        if weights is None:
            weights = dict(zip(self.names, self._frames.counts.astype(float).tolist(), strict=True))
        ticks = _in_ticks(weights, ranks * _TICKS)
        pieces = split_exactly(ticks, (_TICKS,) * ranks)[rank]
        self.probabilities = {ticks[place][0]: Fraction(part, _TICKS) for place, part in pieces}
        drawn, parts = np.array(pieces).T
        place_of = {name: place for place, name in enumerate(self.names)}
        self._dataset = np.array([place_of[name] for name, _ in ticks])[drawn]
        self._until = parts.astype(np.uint64).cumsum()
        together = "" if batch_size is None else f" {batch_size}"
        identity = f"weighted/1 {self._frames.fingerprint} {ticks} {ranks} {seed} {draws}{together}"
        self.fingerprint = fingerprint(identity.encode())

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that this rank draws from."""
        return tuple(self.probabilities)

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch.

        Raises:
            ValueError: An epoch or position that does not exist.
        """
        check_positions(epoch, start, stop, self.length)
        size = self.batch_size or 1
        first = (start - start % size) // _BLOCK
        blocks = range(first, max(-(-stop // _BLOCK), first + 1))  # at least one, also for an empty window
        random = np.concatenate([self._block(epoch, block) for block in blocks])
        which, where = random[start - first * _BLOCK : stop - first * _BLOCK].T
        if size > 1:
            positions = np.arange(start, stop)
            which = random[positions - positions % size - first * _BLOCK, 0]  # that of the first draw of the batch
        ticks = which >> np.uint64(64 - _TICK_BITS)
        dataset = self._dataset[np.searchsorted(self._until, ticks, side="right")]
        nth = random_below(self._frames.counts[dataset].astype(np.uint64), where)
        return dataset, self._frames.locate(dataset, nth)

    def __repr__(self) -> str:
        length = "endless" if self.length is None else f"{self.length:,} draws"
        return (
            f"WeightedOrder({len(self.names)} datasets, {sum(self._frames.counts.tolist()):,} frames; "
            f"rank {self._rank} of {self._ranks} draws from {len(self.datasets)} datasets, {length}"
            f"{describe_batches(self.batch_size)}; seed={self._seed})"
        )

    def _block(self, epoch: int, block: int) -> NDArray[np.uint64]:
        """Two words for each position of a block."""
        words = random_words(self._seed, Purpose.DRAWS, epoch=epoch, stream=self._rank, block=block, count=2 * _BLOCK)
        return words.reshape(_BLOCK, 2)


def _in_ticks(weights: Mapping[str, float], total: int) -> tuple[tuple[str, int], ...]:
    """Weights above 0 as positive integers that add up to `total`, each within one of its exact share."""
    exact: dict[str, Fraction] = {}
    for name, weight in sorted(weights.items()):
        if not (isfinite(weight) and weight >= 0):
            raise ValueError(f"weights: expected a finite weight of at least 0 for {name!r}, got {weight}")
        if weight > 0:  # a Fraction takes no float32
            exact[name] = Fraction(weight if isinstance(weight, Rational) else float(weight))
    if not exact:
        raise ValueError("weights: expected at least one above 0, got none")
    unit = total / sum(exact.values())
    ticks = {name: int(weight * unit) for name, weight in exact.items()}
    missing = total - sum(ticks.values())
    by_loss = sorted(exact, key=lambda name: (ticks[name] - exact[name] * unit, name))
    for name in by_loss[:missing]:
        ticks[name] += 1
    for name, count in ticks.items():
        if not count:
            raise ValueError(f"weights: expected {name!r} large enough to be drawn at all, got {weights[name]}")
    return tuple(ticks.items())
