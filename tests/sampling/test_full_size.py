"""The size of the published mixture: 692 million frames in 5,000 sets, on one of 1,024 ranks."""

import time
import tracemalloc
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from moteur.sampling import EpochOrder, Sampler, WeightedOrder
from moteur.sampling.sampler import Order

SETS, FRAMES, EPISODE, RANKS = 5_000, 692_000_000, 480, 1_024
SECONDS, BYTES, SECONDS_AN_INDEX = 2.0, 200e6, 5e-6  # promised: two to seven times what is used


@pytest.fixture(scope="module")
def sets() -> dict[str, np.ndarray]:
    """Episodes of sets of very different sizes, by first and one-past-last frame."""
    shares = np.random.default_rng(0).lognormal(0, 1.5, SETS)
    sizes = np.maximum(EPISODE, shares / shares.sum() * FRAMES).astype(np.int64)
    sizes[sizes.argmax()] += FRAMES - sizes.sum()
    found: dict[str, np.ndarray] = {}
    for number, size in enumerate(sizes.tolist()):
        stops = np.append(np.arange(EPISODE, size, EPISODE), size)
        found[f"{number:04d}"] = np.stack([np.append(0, stops[:-1]), stops], axis=1)
    assert sum(int(ranges[-1, 1]) for ranges in found.values()) == FRAMES
    return found


def weighted(sets: dict[str, np.ndarray]) -> Order:
    return WeightedOrder(
        sets, {name: float(ranges[-1, 1]) ** 0.7 for name, ranges in sets.items()}, rank=7, ranks=RANKS
    )


def by_epoch(sets: dict[str, np.ndarray]) -> Order:
    return EpochOrder(sets, rank=7, ranks=RANKS)


@pytest.mark.parametrize("build", [weighted, by_epoch])
def test_a_rank_indexes_it_within_the_promised_time_and_memory(
    sets: dict[str, np.ndarray], build: Callable[[dict[str, np.ndarray]], Order]
) -> None:
    begin = time.process_time()  # of this process alone, so that a busy machine does not count
    order = build(sets)
    assert time.process_time() - begin < SECONDS
    walk, count = iter(Sampler(order)), 100_000
    begin = time.process_time()
    assert sum(1 for _ in islice(walk, count)) == count
    assert time.process_time() - begin < count * SECONDS_AN_INDEX
    tracemalloc.start()
    again = build(sets)
    drawn = list(islice(Sampler(again), 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(drawn) == 10
    assert peak + sum(ranges.nbytes for ranges in sets.values()) < BYTES
