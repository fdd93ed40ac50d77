"""Longest-processing-time-first (LPT) assignment of datasets to workers, and an exact split built on it."""

import functools
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import index
from typing import NamedTuple

from moteur.sampling.random_access import fingerprint

_ROWS, _BAR, _NAMES = 16, 40, 3

Split = tuple[tuple[tuple[int, int], ...], ...]
"""For each rank, the places of the datasets it holds and how much of each."""


class Replica(NamedTuple):
    """One worker's copy of one dataset, one of `total`; see `assign`."""

    dataset: str
    number: int
    total: int
    seed: int


@dataclass(frozen=True, repr=False)
class Assignment:
    """Datasets held by each worker, see `assign`; printing it shows the loads as bars."""

    replicas: tuple[tuple[Replica, ...], ...]
    loads: tuple[float, ...]

    @property
    def workers(self) -> int:
        """Number of workers."""
        return len(self.replicas)

    @property
    def imbalance(self) -> float:
        """Heaviest load divided by the mean load."""
        return max(self.loads) * self.workers / sum(self.loads)

    def __repr__(self) -> str:
        heaviest = max(self.loads)
        summary = (
            f"{sum(map(len, self.replicas))} replicas over {self.workers} workers; load: lightest "
            f"{min(self.loads):,.6g}, mean {sum(self.loads) / self.workers:,.6g}, heaviest {heaviest:,.6g} "
            f"({self.imbalance:.4f} of the mean)"
        )
        lines = [summary]
        for worker, (held, load) in enumerate(zip(self.replicas[:_ROWS], self.loads[:_ROWS], strict=True)):
            names = ", ".join(
                r.dataset + (f" ({r.number + 1}/{r.total})" if r.total > 1 else "") for r in held[:_NAMES]
            )
            more = f", and {len(held) - _NAMES} more" if len(held) > _NAMES else ""
            lines.append(f"{worker:5d} {'█' * round(_BAR * load / heaviest):{_BAR}s} {load:>14,.6g}  {names}{more}")
        if self.workers > _ROWS:
            lines.append(f"      ... and {self.workers - _ROWS} more workers")
        return "\n".join(lines)


def assign(sizes: Mapping[str, int], workers: int, *, seed: int = 0) -> Assignment:
    r"""Assign datasets to workers so that the heaviest load is small.

    With at least as many datasets as workers: in descending size, each dataset goes to the worker with the smallest
    load so far (longest processing time first). Every worker gets at least one dataset, every dataset exactly one
    worker, and the heaviest load is at most $\frac{4}{3} - \frac{1}{3K}$ times the smallest possible one for K workers.

    With fewer datasets than workers: every worker gets one copy of a dataset, and each further copy goes to the dataset
    with the largest size / copies at that moment. No other choice of one dataset per worker has a smaller heaviest
    load. Each copy has its own seed.

    The result depends on names and sizes, not on their order: equal sizes are taken in the order of their names, equal
    loads in the order of the workers. O(n log K) for n datasets.

    Args:
        sizes: Work in each dataset, for example its frames; positive integers by name.
        workers: Number of workers (ranks, nodes, processes) K.
        seed: Seed from which, with name and number of each copy, the copies' seeds are computed.

    Returns:
        An object with these attributes; printing it shows the loads as bars.

            - `replicas`: for each worker the datasets it holds, largest first. Each is a named tuple: `dataset` (its
              name), `number` (of this copy, from 0), `total` (copies of the dataset; each worker is expected to do
              1 / `total` of its work), and `seed` (different for every copy).
            - `loads`: for each worker the sum of size / total over its datasets, in the units of the sizes.
            - `workers`, their number, and `imbalance`, the heaviest load divided by the mean load: 1 is perfect.

    Raises:
        ValueError: No dataset, a size below 1, or `workers` below 1.

    Source:
        InternVLA-A1 paper, section 3.4; Graham, "Bounds on multiprocessing timing anomalies", 1969.

    Examples:
        >>> assignment = assign({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}, 2)
        >>> [[replica.dataset for replica in held] for held in assignment.replicas], assignment.loads
        ([['a', 'd'], ['b', 'c', 'e']], (8.0, 10.0))
        >>> assignment = assign({"a": 9, "b": 1}, 3)
        >>> [(replica.dataset, replica.number, replica.total) for (replica,) in assignment.replicas]
        [('a', 0, 2), ('a', 1, 2), ('b', 0, 1)]
    """
    # Plain Python integers from here on: numpy's overflow silently when summed.
    ordered = sorted(((name, index(size)) for name, size in sizes.items()), key=lambda pair: (-pair[1], pair[0]))
    if not ordered or ordered[-1][1] < 1:
        raise ValueError(f"sizes: expected at least one dataset and sizes of at least 1, got {ordered[-1:]}")
    workers = index(workers)
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if len(ordered) < workers:
        return _replicate(ordered, workers, seed)
    held: list[list[Replica]] = [[] for _ in range(workers)]
    # Load and worker in one integer, load * K + worker: the order of the pairs, compared at the speed of integers.
    least_loaded = list(range(workers))
    for name, size in ordered:
        code = least_loaded[0]
        heapq.heapreplace(least_loaded, code + size * workers)
        held[code % workers].append(_replica(name, 0, 1, seed))
    by_worker = sorted((code % workers, code // workers) for code in least_loaded)
    return Assignment(tuple(map(tuple, held)), tuple(float(load) for _, load in by_worker))


def _replicate(ordered: list[tuple[str, int]], workers: int, seed: int) -> Assignment:
    """One copy for every worker, fewer datasets than workers. Fractions are compared exactly."""
    counts = [1] * len(ordered)
    heaviest = [(-Fraction(size), place) for place, (_, size) in enumerate(ordered)]
    heapq.heapify(heaviest)
    for _ in range(workers - len(ordered)):
        place = heaviest[0][1]
        counts[place] += 1
        heapq.heapreplace(heaviest, (-Fraction(ordered[place][1], counts[place]), place))
    counted = list(zip(ordered, counts, strict=True))
    return Assignment(
        tuple((_replica(name, number, total, seed),) for (name, _), total in counted for number in range(total)),
        tuple(size / total for (_, size), total in counted for _ in range(total)),
    )


def _replica(dataset: str, number: int, total: int, seed: int) -> Replica:
    """A replica whose seed depends on `seed`, name and number alone, not on the other datasets."""
    return Replica(dataset, number, total, fingerprint(f"{seed}:{number}:{dataset}".encode()))


@functools.lru_cache(maxsize=8)  # the ranks of one process ask for the same split
def split_exactly(sizes: tuple[tuple[str, int], ...], quotas: tuple[int, ...]) -> Split:
    """Give each rank exactly its quota of work, in few pieces.

    `assign` places whole datasets (or, with fewer datasets than ranks, equal replicas), which makes loads near the
    quotas. Ranks above their quota then hand the surplus, cut from their largest dataset, to ranks below. Each
    hand-over settles a rank, so that D datasets on R ranks make at most max(D, R) + R - 1 pieces.

    Args:
        sizes: Name and work of each dataset, positive integers.
        quotas: Work of each rank; their sum is that of the sizes.

    Returns:
        For each rank its pieces, sorted by the dataset's place in `sizes`. The pieces of a rank add up to its quota and
            those of a dataset to its size. Both are exact: everything is an integer.
    """
    size_of = dict(sizes)
    pieces: list[dict[str, int]] = []
    for replicas in assign(size_of, len(quotas)).replicas:
        parts = ((name, _part(size_of[name], number, total)) for name, number, total, _ in replicas)
        pieces.append({name: part for name, part in parts if part})
    spare = [sum(held.values()) - quota for held, quota in zip(pieces, quotas, strict=True)]
    poor = [rank for rank, surplus in enumerate(spare) if surplus < 0]
    for rank, held in enumerate(pieces):
        while spare[rank] > 0:
            # Largest first, ties by name: the piece outlasts the surplus, so cutting it makes one new piece at most.
            name = min(held, key=lambda name: (-held[name], name))
            taker = poor[-1]
            moved = min(spare[rank], -spare[taker], held[name])
            held[name] -= moved
            if not held[name]:
                del held[name]
            pieces[taker][name] = pieces[taker].get(name, 0) + moved
            spare[rank] -= moved
            spare[taker] += moved
            if spare[taker] == 0:
                poor.pop()
    place_of = {name: place for place, (name, _) in enumerate(sizes)}
    return tuple(tuple(sorted((place_of[name], part) for name, part in held.items())) for held in pieces)


def _part(size: int, number: int, total: int) -> int:
    """Integer part of one replica; the parts of all replicas add up to the size."""
    return size * (number + 1) // total - size * number // total
