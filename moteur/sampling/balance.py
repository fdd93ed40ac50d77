"""Splitting work over ranks exactly, starting from the longest-first assignment."""

import functools

from moteur.sampling.lpt import assign

Split = tuple[tuple[tuple[str, int], ...], ...]
"""For each rank, the datasets it holds and how much of each."""


@functools.lru_cache(maxsize=8)  # every rank of a test or a report asks for the same split
def balance(masses: tuple[tuple[str, int], ...], quotas: tuple[int, ...]) -> Split:
    """Give each rank exactly its quota of work, in few pieces.

    `assign` places whole datasets (or, with fewer datasets than ranks, equal replicas). Its loads are near the quotas,
    not on them; ranks above their quota then hand the surplus, cut from their largest dataset, to ranks below. Each
    hand-over settles a rank, so that at most one piece a rank is added: D datasets on R ranks make at most
    max(D, R) + R - 1 pieces.

    Args:
        masses: Name and work of each dataset, positive integers.
        quotas: Work of each rank; their sum is that of the masses.

    Returns:
        For each rank its pieces, sorted by name. The pieces of a rank add up to its quota and those of a dataset to its
        mass, both exactly: everything is an integer.
    """
    mass_of = dict(masses)
    pieces: list[dict[str, int]] = []
    for shares in assign(mass_of, len(quotas)).shares:
        parts = ((s.dataset, _part(mass_of[s.dataset], s.replica, s.replicas)) for s in shares)
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
    return tuple(tuple(sorted(held.items())) for held in pieces)


def _part(mass: int, replica: int, replicas: int) -> int:
    """Integer share of one replica; the shares of all replicas add up to the mass."""
    return mass * (replica + 1) // replicas - mass * replica // replicas
