"""Random numbers that are a function of where they are used, not of what was drawn before."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What numbers are for: each purpose has its own stream."""

    DRAWS = 1
    RANK_ORDER = 2
    DATASET_ORDER = 3


def words(seed: int, purpose: Purpose, *, epoch: int, stream: int, block: int, count: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit words for one block of one stream (a rank, a dataset) of one epoch.

    Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with key (seed, purpose) and
    counter (0, block, epoch, stream): any block is reached directly, and no two overlap. numpy guarantees this
    generator's words for all time.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, block, epoch, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def scale(random: NDArray[np.uint64], size: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Whole numbers below `size` (itself below 2^32) from random words: the upper 64 bits of the 128-bit product.

    Each number's probability is off by less than 2^-64.
    """
    low = np.uint64(2**32 - 1)
    shift = np.uint64(32)
    upper, lower = random >> shift, random & low
    return ((upper * size + ((lower * size) >> shift)) >> shift).astype(np.int64)


def check_seed(seed: int) -> None:
    """Refuse a seed that does not fit the generator's key."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected a whole number in [0, 2^64), got {seed}")


def check_rank(rank: int, ranks: int) -> None:
    """Refuse a rank that does not exist."""
    if ranks < 1:
        raise ValueError(f"ranks: expected at least 1, got {ranks}")
    if not 0 <= rank < ranks:
        raise ValueError(f"rank: expected a number in [0, {ranks}), got {rank}")


def check_window(epoch: int, start: int, stop: int, length: int | None) -> None:
    """Refuse positions that an epoch does not have."""
    if epoch < 0:
        raise ValueError(f"epoch: expected at least 0, got {epoch}")
    if not 0 <= start <= stop:
        raise ValueError(f"start, stop: expected 0 <= start <= stop, got {start} and {stop}")
    if length is not None and stop > length:
        raise ValueError(f"stop: expected at most the {length} positions of an epoch, got {stop}")
