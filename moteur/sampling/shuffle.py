"""A random order of any number of things, one place at a time and without a table of all of them."""

import functools

import numpy as np
from numpy.typing import NDArray

from moteur.sampling.counters import Purpose, words

_TABLE = 4096  # up to here a table of all places is exact and small
_ROUNDS = 10


def shuffled(
    places: NDArray[np.int64], size: int, *, seed: int, purpose: Purpose, epoch: int, stream: int
) -> NDArray[np.int64]:
    """What stands at each of `places` in a random order of the numbers 0 ... `size` - 1.

    Small sizes: the order that sorts one random word a number. Larger ones: a Feistel network on just enough bits,
    whose halves are mixed by ten keyed rounds; a result outside the range is put through again until it is inside
    (cycle walking, less than two passes on average), which keeps it a permutation. Constant memory, any place directly.
    """
    if size <= _TABLE:
        return _table(seed, purpose, epoch, stream, size)[places]
    keys = words(seed, purpose, epoch=epoch, stream=stream, block=0, count=_ROUNDS)
    result = places.astype(np.uint64)
    outside = np.arange(result.size)
    while outside.size:
        result[outside] = _feistel(result[outside], (size - 1).bit_length(), keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _table(seed: int, purpose: Purpose, epoch: int, stream: int, size: int) -> NDArray[np.int64]:
    order = np.argsort(words(seed, purpose, epoch=epoch, stream=stream, block=0, count=size), kind="stable")
    order.flags.writeable = False
    return order


def _feistel(x: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A keyed one-to-one map of the numbers below 2^bits."""
    lower_bits = np.uint64(bits // 2)
    upper_mask, lower_mask = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
    upper, lower = x >> lower_bits, x & lower_mask
    for turn, key in enumerate(keys):
        # Each turn changes one half by a function of the other, and so can be undone.
        if turn % 2:
            lower ^= _mix(upper, key) & lower_mask
        else:
            upper ^= _mix(lower, key) & upper_mask
    return (upper << lower_bits) | lower


def _mix(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Scatter the bits of x + key: multiply and fold, twice (the constants are those of MurmurHash3's finaliser)."""
    x = x + key
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
