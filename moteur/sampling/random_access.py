"""Random numbers and permutations that are computed from a position, without drawing what comes before it."""

import functools
import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_TABLE = 4096  # up to this size a table of all positions is exact and small
_ROUNDS = 10


class Purpose(IntEnum):
    """Use of random numbers; each has its own stream."""

    DRAWS = 1
    RANK_ORDER = 2
    DATASET_ORDER = 3
    BATCHES = 4


def random_words(seed: int, purpose: Purpose, *, epoch: int, stream: int, block: int, count: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit words for one block of one stream (a rank or a dataset) of one epoch.

    Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with key (seed, purpose) and
    counter (0, block, epoch, stream): any block is reached directly, and no two overlap. numpy guarantees that the
    output of this generator never changes.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, block, epoch, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def random_below(size: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Integers below `size` (itself below 2^32) from random words: the upper 64 bits of the 128-bit product.

    Each integer's probability is off by less than 2^-64.
    """
    low = np.uint64(2**32 - 1)
    shift = np.uint64(32)
    upper, lower = words >> shift, words & low
    return ((upper * size + ((lower * size) >> shift)) >> shift).astype(np.int64)


def permuted(
    positions: NDArray[np.int64], size: int, *, seed: int, purpose: Purpose, epoch: int, stream: int
) -> NDArray[np.int64]:
    """Elements at `positions` of a random permutation of 0 ... `size` - 1.

    A small permutation sorts one random word per number. A larger one is a Feistel network on just enough bits, whose
    halves are mixed by ten keyed rounds; a result outside the range is put through again until it is inside (cycle
    walking, less than two passes on average), which keeps it a permutation. Memory is constant.
    """
    if size <= _TABLE:
        return _table(seed, purpose, epoch, stream, size)[positions]
    keys = random_words(seed, purpose, epoch=epoch, stream=stream, block=0, count=_ROUNDS)
    result = positions.astype(np.uint64)
    outside = np.arange(result.size)
    while outside.size:
        result[outside] = _feistel(result[outside], (size - 1).bit_length(), keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def fingerprint(*parts: bytes | memoryview) -> int:
    """First 63 bits of the BLAKE2b digest: they fit a signed 64-bit integer, which every random generator accepts.

    The same on every machine and in every process, unlike Python's `hash`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big") >> 1


def check_rank(rank: int, ranks: int, seed: int) -> None:
    """Refuse a rank that does not exist and a seed that does not fit the generator's key."""
    if not 0 <= rank < ranks:
        raise ValueError(f"rank: expected a number in [0, {ranks}), got {rank}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected a number in [0, 2^64), got {seed}")


def check_batch_size(batch_size: int | None) -> None:
    """Refuse batches without a sample; `None` stands for no batches of one dataset."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1 or None, got {batch_size}")


def describe_batches(batch_size: int | None) -> str:
    """What an order prints of its batches of one dataset."""
    return "" if batch_size is None else f", in batches of {batch_size} from one dataset"


def check_positions(epoch: int, start: int, stop: int, length: int | None) -> None:
    """Refuse positions that an epoch of `length` does not have; `None` stands for an endless epoch."""
    if epoch < 0 or not 0 <= start <= stop or (length is not None and stop > length):
        limit = "" if length is None else f" <= {length}"
        raise ValueError(
            f"epoch, start, stop: expected 0 <= epoch and 0 <= start <= stop{limit}, got {epoch}, {start} and {stop}"
        )


@functools.lru_cache(maxsize=64)
def _table(seed: int, purpose: Purpose, epoch: int, stream: int, size: int) -> NDArray[np.int64]:
    words = random_words(seed, purpose, epoch=epoch, stream=stream, block=0, count=size)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def _feistel(x: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keyed permutation of the numbers below 2^bits."""
    lower_bits = np.uint64(bits // 2)
    upper_mask, lower_mask = np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)
    upper, lower = x >> lower_bits, x & lower_mask
    for turn, key in enumerate(keys):
        # Each round changes one half by a function of the other, so it can be undone.
        if turn % 2:
            lower ^= _mix(upper, key) & lower_mask
        else:
            upper ^= _mix(lower, key) & upper_mask
    return (upper << lower_bits) | lower


def _mix(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Scatter the bits of x + key: multiply and fold, twice, with the constants of MurmurHash3's finaliser."""
    x = x + key
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
