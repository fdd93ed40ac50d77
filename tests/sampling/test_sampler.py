"""Walking along an order: state, resuming, loaders, and a process that is killed."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader

from moteur.sampling import DatasetPool, EpochOrder, Sampler, WeightedOrder
from moteur.sampling.sampler import Order

FRAMES, WEIGHTS = {"a": 5000, "b": 700, "c": 90}, {"a": 0.5, "b": 0.3, "c": 0.2}


def orders() -> list[Order]:
    return [
        WeightedOrder(FRAMES, WEIGHTS, rank=1, ranks=3, seed=4),
        WeightedOrder(FRAMES, WEIGHTS, rank=1, ranks=3, seed=4, draws=1000),
        EpochOrder(FRAMES, rank=1, ranks=3, seed=4),
    ]


def stream(sampler: Sampler, count: int) -> list[tuple[str, int]]:
    """The next samples, across epochs."""
    epochs = itertools.chain.from_iterable(itertools.repeat(sampler))
    return list(itertools.islice(epochs, count))


@pytest.mark.parametrize("order", orders())
def test_iterating_gives_what_the_order_draws_epoch_after_epoch(order: Order) -> None:
    got = stream(Sampler(order), 9000)
    length = order.length or 9000
    expected: list[tuple[str, int]] = []
    for epoch in range(-(-9000 // length)):
        dataset, frame = order.draw(epoch, 0, length)
        expected += [(order.names[d], f) for d, f in zip(dataset.tolist(), frame.tolist(), strict=True)]
    assert got == expected[:9000]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(st.integers(0, 8000), st.integers(1, 3000), st.integers(0, 2))
def test_a_resumed_sampler_goes_on_exactly_where_the_unbroken_one_does(done: int, more: int, which: int) -> None:
    order = orders()[which]
    unbroken = stream(Sampler(order), done + more)
    broken = Sampler(order)
    stream(broken, done)
    state = json.loads(json.dumps(broken.state_dict()))
    resumed = Sampler(orders()[which])
    resumed.load_state_dict(state)
    assert stream(resumed, more) == unbroken[done:]
    assert resumed.state_dict()["consumed"] == done + more


def test_the_state_is_three_integers_equal_on_all_ranks() -> None:
    states = [Sampler(EpochOrder(FRAMES, rank=rank, ranks=3)).state_dict(consumed=7) for rank in range(3)]
    assert all(state == states[0] for state in states)
    assert set(states[0]) == {"version", "consumed", "fingerprint"}
    assert all(type(value) is int for value in states[0].values())


def test_epochs_can_be_chosen_and_counted() -> None:
    sampler = Sampler(EpochOrder({"a": 6}))
    first, second = list(sampler), list(sampler)
    assert sampler.epoch == 2
    assert len(sampler) == 6
    sampler.set_epoch(1)
    assert list(sampler) == second != first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_gives_the_same_stream_with_any_number_of_workers(workers: int) -> None:
    torch.manual_seed(123)  # nothing global may matter
    order = EpochOrder({"a": 50, "b": 14}, seed=1)
    pool = DatasetPool({"a": range(1000, 1050), "b": range(2000, 2014)})
    loader = DataLoader(pool, batch_size=10, sampler=Sampler(order), num_workers=workers)  # pyright: ignore[reportArgumentType]
    seen = [number for batch in loader for number in batch.tolist()]
    base = {"a": 1000, "b": 2000}
    assert seen == [base[name] + frame for name, frame in Sampler(order)]
    assert len(loader) == 7


LENGTHS = {"c": 90, "a": 6000, "unused": 11, "b": 700}  # in the order of a concatenation


@pytest.mark.parametrize("order", [*orders(), EpochOrder({"b": [[600, 700]], "c": [[0, 1], [89, 90]]}, seed=4)])
def test_numbers_into_a_concatenation_find_the_samples_that_pairs_find_in_a_pool(order: Order) -> None:
    held = {name: [f"{name}{frame}" for frame in range(length)] for name, length in LENGTHS.items()}
    whole, pool = ConcatDataset(list(held.values())), DatasetPool(held)
    numbers = Sampler(order, concatenated=LENGTHS)
    pairs = Sampler(order)
    assert [whole[n] for n in stream(numbers, 5000)] == [pool[pair] for pair in stream(pairs, 5000)]
    assert numbers.state_dict() == pairs.state_dict()
    resumed = Sampler(order, concatenated=LENGTHS)
    resumed.load_state_dict(pairs.state_dict())
    assert [whole[n] for n in stream(resumed, 300)] == [pool[pair] for pair in stream(pairs, 300)]


def test_a_single_dataset_is_indexed_by_frame_number() -> None:
    dataset, order = range(1000, 1040), EpochOrder({"a": 40}, seed=1)
    loader = DataLoader(dataset, batch_size=8, sampler=Sampler(order, concatenated={"a": 40}))  # pyright: ignore[reportArgumentType]
    assert [n for batch in loader for n in batch.tolist()] == [1000 + frame for _, frame in Sampler(order)]


def test_a_frame_past_the_end_of_its_dataset_is_not_taken_from_the_next() -> None:
    order = EpochOrder({"a": [[0, 3], [10, 12]], "b": 20})
    for length in (5, 11):
        message = (
            f"concatenated: expected more than 1[01] frames in 'a', of which the order draws frame 1[01], got {length}"
        )
        with pytest.raises(ValueError, match=message):
            list(Sampler(order, concatenated={"a": length, "b": 20}))
    assert sorted(Sampler(order, concatenated={"a": 12, "b": 20})) == [0, 1, 2, 10, 11, *range(12, 32)]


@pytest.mark.usefixtures("without_shape_checks")
def test_a_concatenation_that_lacks_a_dataset_or_has_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"concatenated: expected the lengths of all datasets .* got none of \['b'\]"):
        Sampler(EpochOrder({"a": 3, "b": 2}), concatenated={"a": 3})
    with pytest.raises(ValueError, match=r"concatenated\['a'\]: expected an integer of at least 0, got 2.5"):
        Sampler(EpochOrder({"a": 3}), concatenated={"a": 2.5})  # pyright: ignore[reportArgumentType]


def test_a_sampler_prints_its_order_and_how_far_it_came() -> None:
    sampler = Sampler(EpochOrder({"a": 6}))
    stream(sampler, 7)
    assert repr(sampler) == f"Sampler({sampler.order!r}, epoch=1, consumed=7)"


PROCESS = """
import sys, time
from torch.utils.data import DataLoader
from moteur.sampling import DatasetPool, Sampler, WeightedOrder
order = WeightedOrder({"a": 5000, "b": 700}, {"a": 0.7, "b": 0.3}, seed=11)
pool = DatasetPool({"a": range(5000), "b": range(10000, 10700)})
loader = DataLoader(pool, batch_size=16, sampler=Sampler(order), num_workers=int(sys.argv[1]))
for step, batch in enumerate(loader, start=1):
    print(" ".join(map(str, batch.tolist())), flush=True)
    time.sleep(0.01)
"""


def test_a_run_that_is_killed_and_resumed_with_other_workers_sees_the_stream_of_an_unbroken_one(tmp_path: Path) -> None:
    log = tmp_path / "samples"
    with log.open("w") as out, subprocess.Popen([sys.executable, "-c", PROCESS, "2"], stdout=out) as process:  # noqa: S603 - our own interpreter, fixed code
        limit = time.monotonic() + 120
        while log.read_text().count("\n") < 20 and time.monotonic() < limit:
            time.sleep(0.02)
        process.kill()
    before = [
        list(map(int, line.split())) for line in log.read_text().splitlines()[:-1]
    ]  # the last may be half written
    assert len(before) >= 19

    order = WeightedOrder({"a": 5000, "b": 700}, {"a": 0.7, "b": 0.3}, seed=11)
    base = {"a": 0, "b": 10000}
    resumed = Sampler(order)
    resumed.load_state_dict(Sampler(order).state_dict(consumed=16 * len(before)))
    pool = DatasetPool({"a": range(5000), "b": range(10000, 10700)})
    loader = DataLoader(pool, batch_size=16, sampler=resumed, num_workers=0)  # pyright: ignore[reportArgumentType]
    after = [batch.tolist() for batch in itertools.islice(loader, 30)]

    unbroken = [base[name] + frame for name, frame in stream(Sampler(order), 16 * (len(before) + 30))]
    assert [number for batch in before + after for number in batch] == unbroken


@pytest.mark.parametrize(
    "other",
    [
        EpochOrder(FRAMES, ranks=3, seed=5),
        EpochOrder(FRAMES, ranks=3, seed=4, drop_last=True),
        EpochOrder(FRAMES, ranks=2, seed=4),
        EpochOrder({**FRAMES, "c": 91}, ranks=3, seed=4),
        WeightedOrder(FRAMES, WEIGHTS, ranks=3, seed=5, draws=9),
        WeightedOrder(FRAMES, WEIGHTS, ranks=3, seed=4, draws=8),
        WeightedOrder(FRAMES, WEIGHTS, ranks=3, seed=4),
        WeightedOrder(FRAMES, WEIGHTS, ranks=2, seed=4, draws=9),
        WeightedOrder(FRAMES, {**WEIGHTS, "a": 0.6}, ranks=3, seed=4, draws=9),
        WeightedOrder({**FRAMES, "c": 91}, WEIGHTS, ranks=3, seed=4, draws=9),
    ],
    ids=repr,
)
def test_a_state_is_refused_by_an_order_that_differs_in_one_thing(other: Order) -> None:
    epochs = EpochOrder(FRAMES, ranks=3, seed=4)
    state = Sampler(
        epochs if isinstance(other, EpochOrder) else WeightedOrder(FRAMES, WEIGHTS, ranks=3, seed=4, draws=9)
    ).state_dict()
    with pytest.raises(ValueError, match=r"state: expected fingerprint \d+ .* saved by a sampler that draws something"):
        Sampler(other).load_state_dict(state)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("count", [float("nan"), -1, 3.0, "3", None])
def test_a_count_that_is_no_count_is_refused_before_it_is_saved_and_when_it_is_loaded(count: object) -> None:
    sampler = Sampler(EpochOrder(FRAMES))
    message = rf"consumed: expected an integer of at least 0, got {count!r}"
    if count is not None:
        with pytest.raises(ValueError, match=message):
            sampler.state_dict(consumed=count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**sampler.state_dict(), "consumed": count})  # pyright: ignore[reportArgumentType]
    assert sampler.consumed == 0


@pytest.mark.usefixtures("without_shape_checks")
def test_counts_may_be_numpys() -> None:
    sampler = Sampler(EpochOrder(FRAMES))
    state = sampler.state_dict(consumed=np.int64(7))  # pyright: ignore[reportArgumentType]
    sampler.load_state_dict(state)
    assert json.dumps(sampler.state_dict()) == json.dumps(state)


def test_mistakes_are_named_with_both_numbers() -> None:
    sampler = Sampler(EpochOrder({"a": 6}, seed=1))
    state = sampler.state_dict()
    with pytest.raises(ValueError, match=r"state: expected fingerprint .* of version 1, got \d+ of version 2"):
        sampler.load_state_dict({**state, "version": 2})
    for other in (EpochOrder({"a": 7}, seed=1), EpochOrder({"a": 6}, seed=2), EpochOrder({"a": 6}, seed=1, ranks=2)):
        with pytest.raises(ValueError, match=rf"fingerprint \d+ .* got {state['fingerprint']} of version 1"):
            Sampler(other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"epoch: expected an integer of at least 0, got -1"):
        sampler.set_epoch(-1)
    endless = Sampler(WeightedOrder({"a": 6}, {"a": 1.0}))
    with pytest.raises(ValueError, match="epoch: expected 0, the only one of an endless order, got 2"):
        endless.set_epoch(2)
    with pytest.raises(TypeError, match="an endless sampler has no length"):
        len(endless)
