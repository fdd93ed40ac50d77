"""The assignment against brute force, Graham's bound, and what must hold for any datasets."""

import heapq
import itertools
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.sampling import assign
from moteur.sampling.lpt import Assignment

names = st.text(min_size=1, max_size=6)
sizes = st.dictionaries(names, st.integers(1, 1000), min_size=1, max_size=40)
workers = st.integers(1, 12)


def exact_loads(assignment: Assignment, of: dict[str, int]) -> list[Fraction]:
    """Loads recomputed from the replicas, without rounding."""
    return [sum((Fraction(of[r.dataset], r.total) for r in held), Fraction(0)) for held in assignment.replicas]


def optimum(jobs: list[int], machines: int) -> int:
    """Smallest possible heaviest load, by trying every way to split the jobs."""
    best = sum(jobs)
    for places in itertools.product(range(machines), repeat=len(jobs)):
        loads = [0] * machines
        for job, place in zip(jobs, places, strict=True):
            loads[place] += job
        best = min(best, max(loads))
    return best


def lower_bound(jobs: list[int], machines: int) -> Fraction:
    """Nobody can do better: the mean load, and the pigeonhole on the jK+1 largest jobs for every j."""
    ordered = sorted(jobs, reverse=True)
    bounds = [Fraction(sum(jobs), machines)]
    for count in range(0, len(ordered), machines):
        rounds = count // machines
        bounds.append(Fraction(sum(ordered[count - rounds : count + 1])))
    return max(bounds)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers)
def test_it_is_a_partition_or_when_replicating_a_cover_and_every_worker_has_something(
    of: dict[str, int], k: int
) -> None:
    assignment = assign(of, k)
    copies = Counter(replica.dataset for held in assignment.replicas for replica in held)
    assert set(copies) == set(of)
    assert len(assignment.replicas) == k
    assert all(assignment.replicas)
    if len(of) >= k:
        assert set(copies.values()) == {1}
    else:
        assert all(len(held) == 1 for held in assignment.replicas)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers)
def test_each_replica_appears_once_and_knows_how_many_there_are(of: dict[str, int], k: int) -> None:
    replicas = [replica for held in assign(of, k).replicas for replica in held]
    for name in of:
        mine = [replica for replica in replicas if replica.dataset == name]
        assert sorted(replica.number for replica in mine) == list(range(len(mine)))
        assert {replica.total for replica in mine} == {len(mine)}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers)
def test_loads_are_the_sums_over_the_replicas(of: dict[str, int], k: int) -> None:
    assignment = assign(of, k)
    exact = exact_loads(assignment, of)
    assert assignment.loads == tuple(map(float, exact))
    assert sum(exact) == sum(of.values())
    assert assignment.imbalance == pytest.approx(float(max(exact) * k / sum(exact)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 3))
def test_the_heaviest_load_stays_within_grahams_bound_of_the_true_optimum(jobs: list[int], k: int) -> None:
    k = min(k, len(jobs))
    heaviest = max(assign({str(i): job for i, job in enumerate(jobs)}, k).loads)
    assert heaviest <= (Fraction(4, 3) - Fraction(1, 3 * k)) * optimum(jobs, k)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 8])
def test_grahams_worst_case_reaches_the_bound_exactly(k: int) -> None:
    # Two each of 2k-1 down to k+1, three of k: the optimum is 3k, longest-first ends at 4k-1.
    jobs = [size for size in range(2 * k - 1, k, -1) for _ in range(2)] + [k] * 3
    heaviest = max(assign({f"{i:03d}": job for i, job in enumerate(jobs)}, k).loads)
    assert heaviest == (Fraction(4, 3) - Fraction(1, 3 * k)) * 3 * k


@pytest.mark.parametrize("k", [2, 7, 64, 1024])
@pytest.mark.parametrize("kind", ["uniform", "heavy tail", "equal"])
def test_large_cases_stay_within_grahams_bound_of_the_lower_bound(k: int, kind: str) -> None:
    rng = random.Random(k)  # noqa: S311 - test data
    draw = {
        "uniform": lambda: rng.randint(1, 10**6),
        "heavy tail": lambda: int(rng.lognormvariate(10, 2)) + 1,
        "equal": lambda: 1000,
    }[kind]
    jobs = [draw() for _ in range(5 * k + 3)]
    heaviest = max(assign({str(i): job for i, job in enumerate(jobs)}, k).loads)
    assert heaviest <= (Fraction(4, 3) - Fraction(1, 3 * k)) * lower_bound(jobs, k)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers)
def test_each_dataset_went_to_the_worker_with_the_least_load_at_that_moment(of: dict[str, int], k: int) -> None:
    if len(of) < k:
        return
    worker_of = {replica.dataset: w for w, held in enumerate(assign(of, k).replicas) for replica in held}
    loads = [0] * k
    for name in sorted(of, key=lambda name: (-of[name], name)):
        assert worker_of[name] == loads.index(min(loads))
        loads[worker_of[name]] += of[name]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(of: dict[str, int], k: int, rng: random.Random) -> None:
    shuffled = list(of.items())
    rng.shuffle(shuffled)
    assert assign(dict(shuffled), k) == assign(of, k)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers, names, st.integers(1, 1000))
def test_loads_are_monotone_in_the_datasets(of: dict[str, int], k: int, name: str, extra: int) -> None:
    """A dataset added or grown lowers none of the loads, smallest to largest."""
    if len(of) < k:
        return
    grown = {**of, name: of.get(name, 0) + extra}
    before, after = sorted(assign(of, k).loads), sorted(assign(grown, k).loads)
    assert all(old <= new for old, new in zip(before, after, strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers)
def test_one_more_worker_never_raises_the_heaviest_load(of: dict[str, int], k: int) -> None:
    assert max(exact_loads(assign(of, k + 1), of)) <= max(exact_loads(assign(of, k), of))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, st.integers(1, 1000), min_size=1, max_size=4), st.integers(1, 8))
def test_replication_reaches_the_smallest_heaviest_load_there_is(of: dict[str, int], extra: int) -> None:
    k = len(of) + extra
    ways = (c for c in itertools.product(range(1, extra + 2), repeat=len(of)) if sum(c) == k)
    best = min(max(Fraction(size, count) for size, count in zip(of.values(), way, strict=True)) for way in ways)
    assert max(exact_loads(assign(of, k), of)) == best


def test_replicas_go_to_the_heaviest_first_and_ties_to_the_first_name() -> None:
    counts = Counter(replica.dataset for (replica,) in assign({"b": 10, "a": 10, "c": 1}, 4).replicas)
    assert counts == {"a": 2, "b": 1, "c": 1}
    counts = Counter(replica.dataset for (replica,) in assign({"large": 90, "middle": 9, "small": 1}, 12).replicas)
    assert counts == {"large": 10, "middle": 1, "small": 1}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, workers, st.integers(0, 2**40))
def test_no_two_replicas_have_the_same_seed_and_all_fit_a_signed_integer(of: dict[str, int], k: int, seed: int) -> None:
    seeds = [replica.seed for held in assign(of, k, seed=seed).replicas for replica in held]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= value < 2**63 for value in seeds)


def test_a_replicas_seed_depends_on_seed_name_and_replica_alone() -> None:
    few, many = assign({"a": 5, "b": 1}, 3, seed=7), assign({"a": 50, "b": 40, "z": 30}, 9, seed=7)
    seeds = {(r.dataset, r.number): r.seed for held in many.replicas for r in held}
    assert all(seeds[r.dataset, r.number] == r.seed for (r,) in few.replicas)
    other = {(r.dataset, r.number): r.seed for (r,) in assign({"a": 5, "b": 1}, 3, seed=8).replicas}
    assert all(other[r.dataset, r.number] != r.seed for (r,) in few.replicas)


def test_the_seeds_are_those_that_were_recorded() -> None:
    seeds = [(r.dataset, r.number, r.seed) for (r,) in assign({"a": 9, "b": 4}, 3, seed=3).replicas]
    assert seeds == [("a", 0, 3965921614451783396), ("a", 1, 8711084215049043602), ("b", 0, 4229998446205725285)]


def test_another_process_with_another_hash_seed_agrees_to_the_last_bit() -> None:
    code = "from moteur.sampling import assign; print(hash(assign({'a': 9, 'b': 4, 'c': 4}, 5, seed=3)))"
    code = code.replace("hash(", "repr(").replace("seed=3)", "seed=3).replicas")
    outputs = {
        subprocess.run(  # noqa: S603 - our own interpreter, fixed code
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": s, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for s in ("1", "2")
    }
    assert outputs == {repr(assign({"a": 9, "b": 4, "c": 4}, 5, seed=3).replicas)}


@pytest.mark.usefixtures("without_shape_checks")
def test_numpy_sizes_are_summed_without_overflow() -> None:
    assignment = assign({str(i): np.int32(2**31 - 1) for i in range(8)}, np.int64(2))  # pyright: ignore[reportArgumentType]
    assert assignment.loads == (4.0 * (2**31 - 1),) * 2


def test_a_heap_of_exact_integers_agrees_at_sizes_beyond_float_precision() -> None:
    of = {f"{i:02d}": 2**60 + i for i in range(20)}
    loads = [(0, w) for w in range(3)]
    for name in sorted(of, key=lambda name: -of[name]):
        load, worker = loads[0]
        heapq.heapreplace(loads, (load + of[name], worker))
    expected = [load for load, _ in sorted(loads, key=lambda entry: entry[1])]
    assert exact_loads(assign(of, 3), of) == expected


def test_the_report_shows_loads_names_and_replicas() -> None:
    text = str(assign({"bridge": 90, "droid": 10}, 3))
    assert text.splitlines()[0] == (
        "3 replicas over 3 workers; load: lightest 10, mean 33.3333, heaviest 45 (1.3500 of the mean)"
    )
    assert "bridge (2/2)" in text
    assert text.count("█") == 40 + 40 + 9
    many = str(assign({f"{i:03d}": 1 for i in range(100)}, 20))
    assert "000, 020, 040, and 2 more" in many
    assert many.endswith("... and 4 more workers")


def test_impossible_sizes_and_workers_are_refused() -> None:
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=rf"sizes: expected .* of at least 1, got \[\('bad', {wrong}\)\]"):
            assign({"good": 1, "bad": wrong}, 1)
        with pytest.raises(ValueError, match=f"workers: expected at least 1, got {wrong}"):
            assign({"a": 1}, wrong)
    with pytest.raises(ValueError, match=r"sizes: expected at least one dataset .*, got \[\]"):
        assign({}, 1)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("wrong", [1.5, float("nan"), "7", None])
def test_sizes_and_workers_that_are_no_integers_are_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        assign({"a": wrong}, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        assign({"a": 1}, wrong)  # pyright: ignore[reportArgumentType]
