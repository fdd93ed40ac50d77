"""Draws in given proportions: exact in expectation for every split, and as drawn."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from moteur.sampling import WeightedOrder, paper_mixture

names = st.text(min_size=1, max_size=4)
TABLE = {corpus.name: corpus.weight for corpus in paper_mixture()}
FRAMES = {corpus.name: corpus.frames for corpus in paper_mixture()}


def drawn(order: WeightedOrder, stop: int, *, start: int = 0, epoch: int = 0) -> list[tuple[str, int]]:
    dataset, frame = order.draw(epoch, start, stop)
    return [(order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist(), strict=True)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, st.floats(1e-6, 1e6), min_size=1, max_size=12), st.integers(1, 17))
def test_expected_global_proportions_equal_the_weights_to_rounding(weights: dict[str, float], ranks: int) -> None:
    frames = dict.fromkeys(weights, 5)
    total = dict.fromkeys(weights, Fraction(0))
    for rank in range(ranks):
        own = WeightedOrder(frames, weights, rank=rank, ranks=ranks).probabilities
        assert sum(own.values()) == 1
        for name, probability in own.items():
            assert probability > 0
            total[name] += probability / ranks
    exact = sum(map(Fraction, weights.values()))
    for name, weight in weights.items():
        assert abs(total[name] - Fraction(weight) / exact) <= Fraction(1, ranks * 2**48)


def test_the_mixture_that_plain_assignment_distorts_is_met_on_two_ranks() -> None:
    weights, frames = {"a": 0.9, "b": 0.09, "c": 0.01}, {"a": 900, "b": 90, "c": 10}
    both = [WeightedOrder(frames, weights, rank=rank, ranks=2).probabilities for rank in (0, 1)]
    assert {name: round(float(p), 9) for name, p in both[0].items()} == {"a": 1.0}
    assert {name: round(float(p), 9) for name, p in both[1].items()} == {"a": 0.8, "b": 0.18, "c": 0.02}


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64, 1024])
def test_a_million_draws_of_the_papers_mixture_have_its_proportions_whatever_the_ranks(ranks: int) -> None:
    each = 1_000_000 // ranks
    counts = np.zeros(len(TABLE))
    order = WeightedOrder(FRAMES, TABLE, ranks=ranks)
    for rank in range(ranks):
        dataset, _ = WeightedOrder(FRAMES, TABLE, rank=rank, ranks=ranks, seed=5).draw(0, 0, each)
        counts += np.bincount(dataset, minlength=len(TABLE))
    total = each * ranks
    for name, count in zip(order.names, counts, strict=True):
        # Drawing on fixed ranks can only lower the spread below that of independent draws.
        spread = (total * TABLE[name] * (1 - TABLE[name])) ** 0.5
        assert abs(count - total * TABLE[name]) <= 4.5 * spread + 1


def test_every_frame_of_a_dataset_is_equally_likely() -> None:
    order = WeightedOrder({"a": [[5, 25], [40, 120]], "b": 7}, {"a": 0.8, "b": 0.2}, seed=1)
    counts = Counter(drawn(order, 200_000))
    a = [counts["a", frame] for frame in [*range(5, 25), *range(40, 120)]]
    b = [counts["b", frame] for frame in range(7)]
    assert sum(a) + sum(b) == 200_000
    assert stats.chisquare(a).pvalue > 1e-3
    assert stats.chisquare(b).pvalue > 1e-3


def test_frames_beyond_four_billion_bits_of_resolution_are_drawn_evenly() -> None:
    # 3 * 2^30 frames from 32 random bits would give some frames twice the chance of others.
    size = 3 * 2**30
    _, frame = WeightedOrder({"a": size}, {"a": 1.0}).draw(0, 0, 300_000)
    assert frame.min() >= 0
    assert frame.max() < size
    assert stats.chisquare(np.bincount(frame % 3, minlength=3)).pvalue > 1e-3
    assert stats.kstest(frame / size, "uniform").pvalue > 1e-3


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=15)
@given(st.integers(0, 20_000), st.integers(1, 9_000), st.integers(0, 5), st.integers(0, 3))
def test_any_window_equals_the_same_positions_of_the_whole(start: int, count: int, epoch: int, rank: int) -> None:
    order = WeightedOrder({"a": 1000, "b": 30}, {"a": 1.0, "b": 2.0}, rank=rank, ranks=4, seed=9)
    whole = drawn(order, 29_000, epoch=epoch)
    assert drawn(order, start + count, start=start, epoch=epoch) == whole[start : start + count]


def test_no_two_ranks_epochs_or_seeds_draw_the_same_sequence() -> None:
    frames, weights = {"a": 10**6}, {"a": 1.0}
    runs = [
        tuple(drawn(WeightedOrder(frames, weights, rank=rank, ranks=64, seed=seed), 50, epoch=epoch))
        for rank in range(64)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(runs)) == len(runs)
    # Not even in part: two runs share a frame in the same place about as often as chance has it, hardly ever.
    places = np.array([[frame for _, frame in run] for run in runs])
    same = sum(int((places == other).sum()) - 50 for other in places)
    assert same <= 20


def test_no_two_of_1024_ranks_draw_the_same_sequence_of_the_papers_mixture() -> None:
    starts = {tuple(drawn(WeightedOrder(FRAMES, TABLE, rank=rank, ranks=1024), 12)) for rank in range(1024)}
    assert len(starts) == 1024


def test_the_order_of_the_input_does_not_matter() -> None:
    backward = WeightedOrder(dict(reversed(FRAMES.items())), dict(reversed(TABLE.items())), rank=1, ranks=3)
    forward = WeightedOrder(FRAMES, TABLE, rank=1, ranks=3)
    assert drawn(backward, 100) == drawn(forward, 100)
    assert backward.fingerprint == forward.fingerprint


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_dataset_of_weight_0_changes_nothing_of_what_the_others_are_drawn_like(ranks: int) -> None:
    weights = {"a": 0.9, "b": 0.0, "c": 0.09, "d": 0.0, "e": 0.01}
    kept = {name: weight for name, weight in weights.items() if weight}
    for rank in range(ranks):
        order = WeightedOrder(dict.fromkeys(weights, 50), weights, rank=rank, ranks=ranks, seed=3)
        others = WeightedOrder(dict.fromkeys(kept, 50), kept, rank=rank, ranks=ranks, seed=3)
        assert drawn(order, 5000) == drawn(others, 5000)
        assert order.probabilities == others.probabilities
        assert order.names == tuple(weights)
        assert order.fingerprint != others.fingerprint


def test_without_weights_every_frame_of_every_dataset_is_equally_likely() -> None:
    frames = {"a": 30, "b": [[0, 5], [10, 25]], "c": 50}
    order, explicit = (
        WeightedOrder(frames, None, seed=2),
        WeightedOrder(frames, {"a": 30.0, "b": 20.0, "c": 50.0}, seed=2),
    )
    counts = Counter(drawn(order, 200_000))
    assert len(counts) == 100
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert drawn(order, 300) == drawn(explicit, 300)
    assert order.fingerprint == explicit.fingerprint


@pytest.mark.usefixtures("without_shape_checks")
def test_weights_may_be_numbers_of_any_kind() -> None:
    kinds = [np.float32, np.float64, float, int, np.int64, Fraction]
    streams = {tuple(drawn(WeightedOrder({"a": 5, "b": 9}, {"a": kind(1), "b": kind(3)}), 50)) for kind in kinds}  # pyright: ignore[reportArgumentType]
    assert len(streams) == 1


def test_the_stream_is_the_one_that_was_recorded() -> None:
    """Checkpoints outlive versions: a change here breaks resuming, and needs a new name for the order."""
    order = WeightedOrder({"a": 1000, "b": 10}, {"a": 0.75, "b": 0.25}, rank=1, ranks=2, seed=42)
    assert drawn(order, 4100, start=4094, epoch=3) == [("a", 634), ("a", 923), ("b", 1), ("b", 3), ("a", 239), ("b", 4)]
    assert order.fingerprint == 2628719977658749750


def test_an_order_prints_its_size_and_what_this_rank_draws_from() -> None:
    order = WeightedOrder({"a": 1000, "b": 10}, {"a": 0.75, "b": 0.25}, rank=1, ranks=2, seed=42, draws=3000)
    assert repr(order) == (
        "WeightedOrder(2 datasets, 1,010 frames; rank 1 of 2 draws from 2 datasets, 3,000 draws; seed=42)"
    )
    assert "endless" in repr(WeightedOrder({"a": 5}, {"a": 1.0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"a": 1.0}}, r"weights: expected the datasets of frames, got \[\] too many and \['b'\] too few"),
        ({"weights": {"a": 1.0, "b": -0.5}}, "weights: expected a finite weight of at least 0 for 'b', got -0.5"),
        (
            {"weights": {"a": 1.0, "b": float("nan")}},
            "weights: expected a finite weight of at least 0 for 'b', got nan",
        ),
        ({"weights": {"a": 1.0, "b": 1e-30}}, "weights: expected 'b' large enough to be drawn at all, got 1e-30"),
        ({"rank": 2, "ranks": 2}, r"rank: expected a number in \[0, 2\), got 2"),
        ({"ranks": 0}, r"rank: expected a number in \[0, 0\), got 0"),
        ({"seed": -1}, r"seed: expected a number in \[0, 2\^64\), got -1"),
        ({"draws": 0}, "draws: expected at least 1 or None, got 0"),
    ],
)
def test_mistakes_are_named_with_both_numbers(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"frames": {"a": 5, "b": 5}, "weights": {"a": 1.0, "b": 1.0}, **changes}
    with pytest.raises(ValueError, match=message):
        WeightedOrder(**arguments)  # pyright: ignore[reportArgumentType]
