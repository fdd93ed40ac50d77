"""Draws from several datasets in given proportions."""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from numbers import Rational

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moteur.sampling.balance import balance
from moteur.sampling.counters import Purpose, check_rank, check_seed, check_window, scale, words
from moteur.sampling.frames import FrameIndex

_BLOCK = 4096  # part of the definition of the order: changing it changes every stream
_TICK_BITS = 48
_TICKS = 2**_TICK_BITS


class WeightedOrder:
    r"""What each rank draws, when datasets are wanted in given proportions.

    Every rank makes the same number of draws, but opens only the datasets that `assign` gives it, plus at most a few
    pieces of others. Its probability of drawing dataset d is $p_{rd}$, chosen such that

    $$\sum_d p_{rd} = 1, \qquad \frac{1}{R}\sum_r p_{rd} = w_d,$$

    so that the R ranks together draw in exactly the proportions w, whatever R. Probabilities are whole multiples of
    2^-48; $w_d$ is met to one such tick divided by R. Within a dataset every usable frame is equally likely, with
    replacement.

    The draw at (seed, epoch, rank, position) is a function of those four numbers, found in constant time.

    Args:
        frames: For each dataset its number of frames, or its usable ranges; see `FrameIndex`.
        weights: For each dataset its weight; only proportions matter.
        rank: This rank, from 0.
        ranks: Number of ranks R.
        seed: Any number in [0, 2^64).
        draws: Draws that each rank makes in an epoch; None: endless.

    Attributes:
        names: Names of all datasets, sorted; `draw` returns places in here.
        length: `draws`.
        fingerprint: 63 bits that change with anything but the rank.

    Raises:
        ValueError: Datasets in `frames` and `weights` that differ, a weight that is not positive and finite or is too
            small beside the others to be met, a rank or seed out of range, fewer than one draw.

    Examples:
        >>> order = WeightedOrder({"large": 1000, "small": 10}, {"large": 0.9, "small": 0.1}, rank=0, ranks=2, draws=4)
        >>> order.probabilities
        {'large': Fraction(1, 1)}
        >>> other = WeightedOrder({"large": 1000, "small": 10}, {"large": 0.9, "small": 0.1}, rank=1, ranks=2, draws=4)
        >>> {name: round(float(p), 6) for name, p in other.probabilities.items()}
        {'large': 0.8, 'small': 0.2}
    """

    def __init__(
        self,
        frames: Mapping[str, int | ArrayLike],
        weights: Mapping[str, float],
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        draws: int | None = None,
    ) -> None:
        check_rank(rank, ranks)
        check_seed(seed)
        if set(frames) != set(weights):
            raise ValueError(
                f"weights: expected the datasets of frames, got {sorted(set(weights) - set(frames))} too many "
                f"and {sorted(set(frames) - set(weights))} too few"
            )
        if draws is not None and draws < 1:
            raise ValueError(f"draws: expected at least 1 or None, got {draws}")
        self._frames = FrameIndex(frames)
        self.names = self._frames.names
        self.length = draws
        self._seed, self._rank = seed, rank
        masses = _in_ticks(weights, ranks * _TICKS)
        pieces = balance(masses, (_TICKS,) * ranks)[rank]
        self.probabilities = {name: Fraction(part, _TICKS) for name, part in pieces}
        """Probability of each dataset that this rank draws from; the others it need not open."""
        ids = {name: place for place, name in enumerate(self.names)}
        self._dataset = np.array([ids[name] for name, _ in pieces])
        self._until = np.array([part for _, part in pieces], dtype=np.uint64).cumsum()
        identity = f"weighted/1 {self._frames.fingerprint} {masses} {ranks} {seed} {draws}"
        self.fingerprint = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch.

        Raises:
            ValueError: An epoch or position that does not exist.
        """
        check_window(epoch, start, stop, self.length)
        first = start // _BLOCK
        blocks = range(first, max(-(-stop // _BLOCK), first + 1))  # one at least: no positions are a window, too
        random = np.concatenate([self._block(epoch, block) for block in blocks])
        which, where = random[start - first * _BLOCK : stop - first * _BLOCK].T
        ticks = which >> np.uint64(64 - _TICK_BITS)
        dataset = self._dataset[np.searchsorted(self._until, ticks, side="right")]
        nth = scale(where, self._frames.counts[dataset].astype(np.uint64))
        return dataset, self._frames.locate(dataset, nth)

    def _block(self, epoch: int, block: int) -> NDArray[np.uint64]:
        """Two words for each position of a block."""
        random = words(self._seed, Purpose.DRAWS, epoch=epoch, stream=self._rank, block=block, count=2 * _BLOCK)
        return random.reshape(_BLOCK, 2)


def _in_ticks(weights: Mapping[str, float], total: int) -> tuple[tuple[str, int], ...]:
    """Weights as whole numbers that add up to `total`, each within one of its exact share."""
    exact: dict[str, Fraction] = {}
    for name in sorted(weights):
        if not (isfinite(weights[name]) and weights[name] > 0):
            raise ValueError(f"weights: expected a positive finite weight for {name!r}, got {weights[name]}")
        weight = weights[name]  # a Fraction takes no float32
        exact[name] = Fraction(weight if isinstance(weight, Rational) else float(weight))
    unit = total / sum(exact.values())
    ticks = {name: int(weight * unit) for name, weight in exact.items()}
    missing = total - sum(ticks.values())
    by_loss = sorted(exact, key=lambda name: (ticks[name] - exact[name] * unit, name))
    for name in by_loss[:missing]:
        ticks[name] += 1
    for name, count in ticks.items():
        if not count:
            raise ValueError(f"weights: {name!r} has {weights[name]}, too small beside the others to ever be drawn")
    return tuple(ticks.items())
