"""Longest-processing-time-first assignment of datasets to workers."""

import heapq
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Integral
from typing import cast

from moteur.sampling.assignment import Assignment, Share
from moteur.sampling.seeds import replica_seed


def assign(sizes: Mapping[str, int] | Iterable[tuple[str, int]], workers: int, *, seed: int = 0) -> Assignment:
    r"""Give every worker some datasets so that the heaviest load is small.

    With at least as many datasets as workers: in descending size, each dataset goes to the worker with the smallest
    load so far. Every worker gets at least one, every dataset exactly one worker, and the heaviest load is at most
    $\frac{4}{3} - \frac{1}{3K}$ times the smallest possible one for K workers.

    With fewer datasets than workers: every worker gets one replica, and each replica beyond the first goes to the
    dataset whose size / replicas is largest at that moment, which gives the smallest possible heaviest load for one
    dataset a worker. Each replica has its own seed.

    A pure function: it depends on names and sizes, not on their order; equal sizes are taken in the order of their
    names, equal loads in the order of the workers. O(n log K) for n datasets.

    Args:
        sizes: Work in each dataset (frames, say), positive integers by name; or pairs of name and size.
        workers: Number of workers (ranks, nodes, processes) K.
        seed: What the replicas' seeds are derived from, together with name and replica number.

    Returns:
        The shares of each worker, and the loads.

    Raises:
        ValueError: No dataset; a size that is not a positive integer; a name twice; `workers` below 1.

    Source:
        InternVLA-A1 paper, section 3.4; Graham, "Bounds on multiprocessing timing anomalies", 1969.

    Examples:
        >>> assignment = assign({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}, 2)
        >>> [[share.dataset for share in shares] for shares in assignment.shares], assignment.loads
        ([['a', 'd'], ['b', 'c', 'e']], (8.0, 10.0))
        >>> replicated = assign({"a": 9, "b": 1}, 3)
        >>> [[f"{s.dataset} {s.replica + 1}/{s.replicas}" for s in shares] for shares in replicated.shares]
        [['a 1/2'], ['a 2/2'], ['b 1/1']]
    """
    ordered = _largest_first(sizes)
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1:
        raise ValueError(f"workers: expected a whole number of at least 1, got {workers!r}")
    workers = int(workers)
    if len(ordered) < workers:
        return _replicate(ordered, workers, seed)
    shares: list[list[Share]] = [[] for _ in range(workers)]
    # Load and worker in one integer, load * K + worker: the order of the pairs, compared at the speed of integers.
    least_loaded = list(range(workers))
    for name, size in ordered:
        code = least_loaded[0]
        heapq.heapreplace(least_loaded, code + size * workers)
        shares[code % workers].append(Share(name, 0, 1, replica_seed(seed, name, 0)))
    by_worker = sorted((code % workers, code // workers) for code in least_loaded)
    return Assignment(tuple(map(tuple, shares)), tuple(float(load) for _, load in by_worker))


def _replicate(ordered: list[tuple[str, int]], workers: int, seed: int) -> Assignment:
    """One replica for every worker, fewer datasets than workers. Shares are compared as fractions: no rounding."""
    counts = [1] * len(ordered)
    heaviest = [(-Fraction(size), index) for index, (_, size) in enumerate(ordered)]
    heapq.heapify(heaviest)
    for _ in range(workers - len(ordered)):
        index = heaviest[0][1]
        counts[index] += 1
        heapq.heapreplace(heaviest, (-Fraction(ordered[index][1], counts[index]), index))
    shares: list[tuple[Share, ...]] = []
    loads: list[float] = []
    for (name, size), count in zip(ordered, counts, strict=True):
        for replica in range(count):
            shares.append((Share(name, replica, count, replica_seed(seed, name, replica)),))
            loads.append(size / count)
    return Assignment(tuple(shares), tuple(loads))


def _largest_first(sizes: Mapping[str, int] | Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    pairs = list(cast("Mapping[str, int]", sizes).items()) if isinstance(sizes, Mapping) else list(sizes)
    if not pairs:
        raise ValueError("sizes: expected at least one dataset, got none")
    checked: dict[str, int] = {}
    for name, size in pairs:
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"sizes: expected a positive whole number for {name!r}, got {size!r}")
        if name in checked:
            raise ValueError(f"sizes: expected each dataset once, got {name!r} twice")
        # Plain Python integers from here on: numpy's would overflow in silence when summed.
        checked[name] = int(size)
    return sorted(checked.items(), key=lambda pair: (-pair[1], pair[0]))
