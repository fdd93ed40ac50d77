"""Batches whose frames all come from one dataset, of epochs and of mixtures."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from moteur.sampling import EpochOrder, Sampler, WeightedOrder

Item = TypeVar("Item")

FRAMES, WEIGHTS = {"a": 500, "b": [[0, 30], [40, 80]], "c": 90}, {"a": 0.5, "b": 0.3, "c": 0.2}
sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 60), min_size=1, max_size=8)


def read(order: EpochOrder | WeightedOrder, stop: int, *, epoch: int = 0, start: int = 0) -> list[tuple[str, int]]:
    dataset, frame = order.draw(epoch, start, stop)
    return [(order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist(), strict=True)]


def cut(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def orders(size: int) -> list[EpochOrder | WeightedOrder]:
    return [
        EpochOrder(FRAMES, rank=1, ranks=2, seed=4, batch_size=size),
        EpochOrder(FRAMES, rank=1, ranks=2, seed=4, batch_size=size, drop_last=True),
        WeightedOrder(FRAMES, WEIGHTS, rank=1, ranks=2, seed=4, draws=5000, batch_size=size),
        WeightedOrder(FRAMES, WEIGHTS, rank=1, ranks=2, seed=4, batch_size=size),
    ]


@pytest.mark.parametrize("size", [3, 7, 16])
@pytest.mark.parametrize("which", range(4))
def test_every_batch_is_of_one_dataset_and_neighbours_are_of_several(which: int, size: int) -> None:
    order = orders(size)[which]
    batches = cut(read(order, order.length or 9000), size)
    assert all(len({name for name, _ in batch}) == 1 for batch in batches)
    assert {name for ((name, _), *_) in batches} == set(order.datasets)
    changes = sum(one[0][0] != other[0][0] for one, other in pairwise(batches))
    assert changes > len(batches) / 10


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(frames=sizes, ranks=st.integers(1, 5), size=st.integers(1, 9), epoch=st.integers(0, 2))
def test_all_ranks_together_read_every_frame_and_repeat_at_most_what_fills_batches(
    frames: dict[str, int], ranks: int, size: int, epoch: int
) -> None:
    batches = {name: -(-count // size) for name, count in frames.items()}
    ranks = min(ranks, sum(batches.values()))
    parts = [EpochOrder(frames, rank=rank, ranks=ranks, seed=2, batch_size=size) for rank in range(ranks)]
    assert {part.length for part in parts} == {-(-sum(batches.values()) // ranks) * size}
    counts = Counter(item for part in parts for item in read(part, part.length - part.repeated, epoch=epoch))
    assert set(counts) == {(name, frame) for name, count in frames.items() for frame in range(count)}
    assert sum(counts.values()) == size * sum(batches.values())
    for name, count in frames.items():
        each = [counts[name, frame] for frame in range(count)]
        assert max(each) - min(each) <= 1  # what fills the last batch is spread evenly
    assert sum(part.repeated for part in parts) == size * (-sum(batches.values()) % ranks)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(frames=sizes, ranks=st.integers(1, 5), size=st.integers(1, 9))
def test_dropping_repeats_no_frame_and_leaves_out_less_than_a_batch_of_each_dataset_and_rank(
    frames: dict[str, int], ranks: int, size: int
) -> None:
    frames = {name: count + size for name, count in frames.items()}
    batches = sum(count // size for count in frames.values())
    ranks = min(ranks, batches)
    parts = [EpochOrder(frames, rank=rank, ranks=ranks, batch_size=size, drop_last=True) for rank in range(ranks)]
    items = [item for part in parts for item in read(part, part.length)]
    assert len(items) == len(set(items)) == size * (batches - batches % ranks)
    assert all(part.repeated == 0 for part in parts)


def test_batches_are_made_up_anew_each_epoch() -> None:
    order = EpochOrder({"a": 64, "b": 5000}, seed=1, batch_size=8)
    first, second = ({frozenset(batch) for batch in cut(read(order, order.length, epoch=e), 8)} for e in (0, 1))
    assert not first & second


def test_every_frame_of_a_dataset_is_as_likely_in_every_place_of_a_batch() -> None:
    order = EpochOrder({"a": 40, "b": 12}, seed=9, batch_size=4)
    frames = [np.array(read(order, order.length, epoch=epoch), dtype=object) for epoch in range(600)]
    items = np.concatenate(frames)
    for place in range(4):
        here = [frame for name, frame in items[place::4] if name == "a"]
        assert stats.chisquare(np.bincount(here, minlength=40)).pvalue > 1e-3


@pytest.mark.parametrize("size", [2, 5, 16, 100])
def test_weights_are_met_exactly_whatever_the_batch_and_the_ranks(size: int) -> None:
    total = dict.fromkeys(WEIGHTS, Fraction(0))
    counts: Counter[str] = Counter()
    for rank in range(3):
        order = WeightedOrder(FRAMES, WEIGHTS, rank=rank, ranks=3, seed=6, batch_size=size)
        for name, chance in order.probabilities.items():
            total[name] += chance / 3
        counts.update(name for name, _ in read(order, 400 * size)[::size])
    for name, weight in WEIGHTS.items():
        assert abs(total[name] - Fraction(weight)) < Fraction(1, 2**40)
        assert abs(counts[name] - 1200 * weight) < 4.5 * (1200 * weight * (1 - weight)) ** 0.5


def test_within_a_batch_frames_of_a_mixture_are_drawn_evenly_and_apart() -> None:
    order = WeightedOrder({"a": [[5, 25], [40, 120]]}, {"a": 1.0}, seed=1, batch_size=10)
    frames = np.array([frame for _, frame in read(order, 100_000)])
    counts = np.bincount(frames, minlength=120)
    assert stats.chisquare(np.concatenate([counts[5:25], counts[40:]])).pvalue > 1e-3
    assert counts[:5].sum() + counts[25:40].sum() == 0
    within = frames.reshape(-1, 10)
    assert abs(np.corrcoef(within[:, 0], within[:, 1])[0, 1]) < 4.5 / 10_000**0.5


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(data=st.data(), which=st.integers(0, 4), size=st.sampled_from([1, 6, 16]))
def test_any_window_equals_the_same_positions_of_the_whole(data: st.DataObject, which: int, size: int) -> None:
    order = [*orders(size), WeightedOrder(FRAMES, WEIGHTS, batch_size=4097)][which]
    length = order.length or 13_000
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert read(order, stop, start=start, epoch=0) == read(order, length)[start:stop]


@pytest.mark.parametrize("which", range(4))
def test_a_resumed_sampler_goes_on_exactly_where_the_unbroken_one_does(which: int) -> None:
    order = orders(16)[which]
    whole, sampler, resumed = iter(Sampler(order)), Sampler(order), Sampler(orders(16)[which])
    expected = [next(whole) for _ in range(200)]
    running = iter(sampler)
    begun = [next(running) for _ in range(72)]
    resumed.load_state_dict(sampler.state_dict())
    rest = iter(resumed)
    assert begun + [next(rest) for _ in range(128)] == expected


def test_the_streams_are_those_that_were_recorded() -> None:
    """Checkpoints outlive versions: a change here breaks resuming, and needs a new name for the order."""
    epochs, _, mixture, _ = orders(4)
    assert read(epochs, 138, start=132, epoch=3) == [
        ("b", 20),
        ("b", 63),
        ("b", 60),
        ("b", 26),
        ("c", 48),
        ("c", 8),
    ]
    assert read(mixture, 4100, start=4094, epoch=3) == [
        ("b", 56),
        ("b", 19),
        ("b", 71),
        ("b", 64),
        ("b", 63),
        ("b", 11),
    ]
    assert (epochs.fingerprint, mixture.fingerprint) == (4317410734579781523, 203139252396702087)


def test_a_state_of_other_batches_is_refused() -> None:
    for one, other in [(4, 8), (1, 4)]:
        for order, another in zip(orders(one), orders(other), strict=True):
            with pytest.raises(ValueError, match="state: expected fingerprint"):
                Sampler(another).load_state_dict(Sampler(order).state_dict())
    assert EpochOrder(FRAMES).fingerprint != EpochOrder(FRAMES, batch_size=1).fingerprint


def test_orders_print_their_batches() -> None:
    assert repr(EpochOrder({"a": 90, "b": 10}, batch_size=8, seed=2)) == (
        "EpochOrder(2 datasets, 100 frames; rank 0 of 1 reads 112 from 2 datasets, in batches of 8 from one dataset; "
        "seed=2)"
    )
    assert "endless, in batches of 8 from one dataset; seed=0" in repr(WeightedOrder({"a": 9}, None, batch_size=8))


def test_mistakes_are_named_with_both_numbers() -> None:
    for refused in (lambda: EpochOrder(FRAMES, batch_size=0), lambda: WeightedOrder(FRAMES, None, batch_size=0)):
        with pytest.raises(ValueError, match="batch_size: expected at least 1 or None, got 0"):
            refused()
    with pytest.raises(ValueError, match="ranks: expected at most as many as batches of 8 frames, 2, got 3"):
        EpochOrder({"a": 16}, ranks=3, batch_size=8)
    with pytest.raises(ValueError, match="frames: expected at least a batch of 8 in 'b' with drop_last=True, got 7"):
        EpochOrder({"a": 16, "b": 7}, batch_size=8, drop_last=True)
