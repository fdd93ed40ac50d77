"""Exact split of work over ranks."""

from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.sampling import assign
from moteur.sampling.lpt import split_exactly

sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 10_000), min_size=1, max_size=30)


def quotas_of(total: int, ranks: int) -> tuple[int, ...]:
    return tuple(total // ranks + (rank < total % ranks) for rank in range(ranks))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 20))
def test_ranks_get_their_quota_and_datasets_their_size_exactly_in_few_pieces(of: dict[str, int], ranks: int) -> None:
    quotas = quotas_of(sum(of.values()), ranks)
    split = split_exactly(tuple(sorted(of.items())), quotas)
    assert tuple(sum(part for _, part in pieces) for pieces in split) == quotas
    totals = [0] * len(of)
    for pieces in split:
        assert len({place for place, _ in pieces}) == len(pieces)
        for place, part in pieces:
            assert part > 0
            totals[place] += part
    assert totals == [of[name] for name in sorted(of)]
    assert sum(map(len, split)) <= max(len(of), ranks) + ranks - 1


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 20))
def test_what_was_even_already_is_the_plain_assignment(of: dict[str, int], ranks: int) -> None:
    replicas = assign(of, ranks).replicas
    loads = [sum((Fraction(of[r.dataset], r.total) for r in held), Fraction(0)) for held in replicas]
    if len(of) < ranks or any(load.denominator != 1 for load in loads):
        return
    split = split_exactly(tuple(sorted(of.items())), tuple(map(int, loads)))
    names = sorted(of)
    assert [[names[place] for place, _ in pieces] for pieces in split] == [
        sorted(r.dataset for r in held) for held in replicas
    ]


def test_a_surplus_is_cut_from_the_largest_dataset_of_its_rank() -> None:
    # Assigned: a and d to rank 0, b and c to rank 1, which holds 9 where its quota is 8.
    split = split_exactly((("a", 6), ("b", 5), ("c", 4), ("d", 1)), (8, 8))
    assert split == (((0, 6), (1, 1), (3, 1)), ((1, 4), (2, 4)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 20))
def test_most_datasets_stay_whole_on_the_rank_that_the_assignment_chose(of: dict[str, int], ranks: int) -> None:
    if len(of) < ranks:
        return
    split = split_exactly(tuple(sorted(of.items())), quotas_of(sum(of.values()), ranks))
    holders = {
        name: {rank for rank, pieces in enumerate(split) if place in dict(pieces)}
        for place, name in enumerate(sorted(of))
    }
    assert sum(len(where) > 1 for where in holders.values()) <= ranks - 1
    for rank, held in enumerate(assign(of, ranks).replicas):
        assert all(rank in holders[replica.dataset] for replica in held if len(holders[replica.dataset]) > 1)
