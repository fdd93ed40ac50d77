"""Passes in which each frame comes once, over any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from moteur.sampling import EpochOrder
from moteur.sampling.random_access import Purpose, permuted

sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 60), min_size=1, max_size=12)


def read(order: EpochOrder, epoch: int = 0) -> list[tuple[str, int]]:
    dataset, frame = order.draw(epoch, 0, order.length)
    return [(order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist(), strict=True)]


def all_of(frames: dict[str, int]) -> set[tuple[str, int]]:
    return {(name, frame) for name, count in frames.items() for frame in range(count)}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 9), st.integers(0, 3))
def test_all_ranks_together_read_each_frame_once_and_make_equally_many_steps(
    frames: dict[str, int], ranks: int, epoch: int
) -> None:
    total = sum(frames.values())
    ranks = min(ranks, total)
    orders = [EpochOrder(frames, rank=rank, ranks=ranks, seed=2) for rank in range(ranks)]
    assert {order.length for order in orders} == {-(-total // ranks)}
    real = [read(order, epoch)[: order.length - order.repeated] for order in orders]
    counts = Counter(item for rank in real for item in rank)
    assert set(counts) == all_of(frames)
    assert set(counts.values()) == {1}
    assert sum(order.repeated for order in orders) == -total % ranks


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 9))
def test_dropping_leaves_out_fewer_frames_than_ranks_and_repeats_none(frames: dict[str, int], ranks: int) -> None:
    total = sum(frames.values())
    ranks = min(ranks, total)
    orders = [EpochOrder(frames, rank=rank, ranks=ranks, drop_last=True) for rank in range(ranks)]
    items = [item for order in orders for item in read(order)]
    assert {order.length for order in orders} == {total // ranks}
    assert len(items) == len(set(items)) == total - total % ranks
    assert all(order.repeated == 0 for order in orders)


def test_a_repetition_is_of_the_ranks_own_first_frame() -> None:
    order = EpochOrder({"a": 7}, rank=1, ranks=2)
    items = read(order)
    assert order.repeated == 1
    assert items[-1] == items[0]


def test_a_rank_reads_only_the_datasets_that_it_says() -> None:
    frames = {f"{i:02d}": 10 + i for i in range(40)}
    opened = [EpochOrder(frames, rank=rank, ranks=8).datasets for rank in range(8)]
    assert sum(map(len, opened)) <= 40 + 8 - 1
    for rank in range(8):
        order = EpochOrder(frames, rank=rank, ranks=8)
        assert {name for name, _ in read(order)} == set(order.datasets)


def test_ranks_that_share_a_dataset_come_to_see_all_of_it() -> None:
    orders = [EpochOrder({"a": 5000}, rank=rank, ranks=2, seed=3) for rank in (0, 1)]
    seen = [{frame for epoch in range(12) for _, frame in read(order, epoch)} for order in orders]
    # Half of the frames an epoch: 5000 / 2^12, about one, is unseen after twelve.
    assert all(len(frames) >= 4990 for frames in seen)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(st.integers(0, 9_999), st.integers(0, 9_999), st.integers(0, 3))
def test_any_window_equals_the_same_positions_of_the_whole(one: int, two: int, epoch: int) -> None:
    order = EpochOrder({"a": 15_000, "b": 4_000, "c": [[10, 600], [700, 1110]]}, rank=1, ranks=2)
    start, stop = sorted((one, two))
    dataset, frame = order.draw(epoch, start, stop)
    window = [(order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist(), strict=True)]
    assert window == read(order, epoch)[start:stop]


def test_orders_differ_by_epoch_rank_and_seed() -> None:
    runs = {
        (seed, epoch): tuple(read(EpochOrder({"a": 300, "b": 9000}, seed=seed), epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(runs.values())) == 9
    assert runs[0, 0] == tuple(read(EpochOrder({"b": 9000, "a": 300}, seed=0), 0))


def test_the_stream_is_the_one_that_was_recorded() -> None:
    """Checkpoints outlive versions: a change here breaks resuming, and needs a new name for the order."""
    dataset, frame = EpochOrder({"a": 9000, "b": 10}, rank=1, ranks=2, seed=42).draw(3, 4094, 4100)
    assert dataset.tolist() == [0, 0, 0, 0, 0, 0]
    assert frame.tolist() == [4667, 4207, 2771, 5175, 1011, 3526]
    assert EpochOrder({"a": 9000, "b": 10}, rank=1, ranks=2, seed=42).fingerprint == 6288580947417314342
    dropping = EpochOrder({"a": 9000, "b": 11}, rank=1, ranks=2, seed=42, drop_last=True)
    assert dropping.fingerprint == 3801899886161371515


def test_an_order_prints_its_size_and_what_this_rank_reads() -> None:
    order = EpochOrder({"a": 9000, "b": 10}, rank=1, ranks=2, seed=42)
    assert repr(order) == ("EpochOrder(2 datasets, 9,010 frames; rank 1 of 2 reads 4,505 from 2 datasets; seed=42)")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4096, 4097, 5000, 65_536, 100_003])
def test_a_shuffle_is_a_permutation_of_any_size(size: int) -> None:
    order = permuted(np.arange(size), size, seed=1, purpose=Purpose.RANK_ORDER, epoch=0, stream=0)
    assert np.array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [6, 4099, 20_000])
def test_every_number_is_equally_likely_in_every_place(size: int) -> None:
    first, last = (
        np.concatenate(
            [
                permuted(np.array([place]), size, seed=9, purpose=Purpose.RANK_ORDER, epoch=epoch, stream=0)
                for epoch in range(1000)
            ]
        )
        for place in (0, size - 1)
    )
    for numbers in (first, last):
        assert stats.chisquare(np.bincount(numbers * 6 // size, minlength=6)).pvalue > 1e-3
    assert abs(np.corrcoef(first, last)[0, 1] + 1 / (size - 1)) < 4.5 / 1000**0.5


def test_neighbours_are_scattered() -> None:
    size = 1_000_003
    order = permuted(np.arange(100_000), size, seed=4, purpose=Purpose.RANK_ORDER, epoch=0, stream=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4.5 / 100_000**0.5
    steps = (np.diff(order) % size) / size
    assert stats.kstest(steps, "uniform").pvalue > 1e-3


def test_a_place_far_into_a_huge_set_needs_no_table() -> None:
    order = EpochOrder({"a": 4_000_000_000, "b": 3_000_000_000})
    dataset, frame = order.draw(0, 6_999_999_000, 7_000_000_000)
    assert len({*zip(dataset.tolist(), frame.tolist(), strict=True)}) == 1000


def test_mistakes_are_named_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="ranks: expected at most as many as frames, 3, got 4"):
        EpochOrder({"a": 3}, ranks=4)
    with pytest.raises(ValueError, match=r"rank: expected a number in \[0, 1\), got -1"):
        EpochOrder({"a": 3}, rank=-1)
