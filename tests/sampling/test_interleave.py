"""Streams, which can only be read from their beginning, interleaved and resumed."""

import itertools
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from moteur.sampling import EpochOrder, Interleave, Sampler, WeightedOrder

WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}
ONES = dict.fromkeys(WEIGHTS, 1)
LENGTHS = {"a": 37, "b": 8, "c": 1000}
Source: TypeAlias = Callable[[str], Iterable[Any]] | dict[str, Any]


class Counting:
    """Stream with a state of its own: counts on over all passes, as a shuffling stream does with its seed."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length, self.place = name, length, 0

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for _ in range(self.length - self.place % self.length):
            self.place += 1
            yield self.name, self.place - 1

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def plain(name: str) -> Iterable[Any]:
    return [(name, number) for number in range(LENGTHS[name])]


def counting(name: str) -> Iterable[Any]:
    return Counting(name, LENGTHS[name])


def mixed(source: Source = plain, *, draws: int | None = None, name_key: str | None = None) -> Interleave:
    return Interleave(WeightedOrder(ONES, WEIGHTS, seed=5, draws=draws), source, name_key=name_key)


def taken(streams: Iterable[Any], count: int) -> list[Any]:
    """The next samples, over as many epochs as it takes."""
    return list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(streams)), count))


@pytest.mark.parametrize("source", [plain, counting])
def test_streams_come_in_the_orders_sequence_and_each_in_its_own(source: Source) -> None:
    found = taken(mixed(source), 5000)
    assert [name for name, _ in found] == [name for name, _ in itertools.islice(Sampler(mixed().sampler.order), 5000)]
    for name, length in LENGTHS.items():
        numbers = [number for stream, number in found if stream == name]
        assert numbers == [n if source is counting else n % length for n in range(len(numbers))]
    counts = Counter(name for name, _ in found)
    for name, weight in WEIGHTS.items():
        assert abs(counts[name] - 5000 * weight) < 4.5 * (5000 * weight * (1 - weight)) ** 0.5


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(
    first=st.integers(0, 700), second=st.integers(0, 200), draws=st.sampled_from([None, 90]), own_state=st.booleans()
)
def test_resumed_streams_go_on_exactly_where_the_unbroken_ones_do(
    first: int, second: int, draws: int | None, *, own_state: bool
) -> None:
    source = counting if own_state else plain
    unbroken = taken(mixed(source, draws=draws), first + second)
    before, after = mixed(source, draws=draws), mixed(source, draws=draws)
    assert taken(before, first) == unbroken[:first]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert taken(after, second) == unbroken[first:]
    assert after.state_dict() == mixed_after(source, draws, first + second)


def mixed_after(source: Source, draws: int | None, count: int) -> dict[str, Any]:
    unbroken = mixed(source, draws=draws)
    taken(unbroken, count)
    return unbroken.state_dict()


@pytest.mark.parametrize("source", [plain, counting])
@pytest.mark.parametrize("count", [0, 2, 60])
def test_a_state_may_be_loaded_into_streams_that_were_read_already(count: int, source: Source) -> None:
    streams = mixed(source)
    taken(streams, count)
    state = json.loads(json.dumps(streams.state_dict()))
    expected = taken(streams, 100)
    streams.load_state_dict(state)
    assert taken(streams, 100) == expected


def test_an_epoch_that_is_left_early_goes_on_and_reads_every_sample_once() -> None:
    streams = Interleave(EpochOrder(LENGTHS, seed=1), plain)
    found = [sample for sample, _ in zip(streams, range(500), strict=False)]
    # zip has asked for one sample more than it handed out
    rest = list(streams)
    assert len(found) == 500
    assert len(rest) == sum(LENGTHS.values()) - 501
    assert len(set(found + rest)) == sum(LENGTHS.values()) - 1
    assert streams.sampler.epoch == 1


def test_a_stream_is_opened_once_and_only_when_it_is_drawn() -> None:
    asked: list[str] = []

    def source(name: str) -> Iterable[Any]:
        asked.append(name)
        return plain(name)

    order = WeightedOrder(ONES, {"a": 0.5, "b": 0.0, "c": 0.5})
    taken(Interleave(order, source), 300)
    assert sorted(asked) == ["a", "c"]


def test_samples_say_which_stream_they_are_from() -> None:
    held = {name: [{"x": 1}] for name in WEIGHTS}
    found = taken(mixed(held, name_key="set"), 50)
    assert [sample["set"] for sample in found] == [name for name, _ in taken(mixed(), 50)]
    assert all(sample["x"] == 1 for sample in found)
    assert held["a"] == [{"x": 1}]


class Shard:
    """Stream that each worker of a loader reads its own part of, as a webdataset does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __iter__(self) -> Iterator[tuple[str, int]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(self.name, number) for number in range(first, LENGTHS[self.name], step)])


class Streams(Interleave, IterableDataset[Any]):
    """What a torch loader takes."""


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_reads_every_sample_once_with_streams_that_its_workers_share_out(workers: int) -> None:
    parts = max(workers, 1)
    order = EpochOrder({"a": 36 // parts, "b": 8 // parts, "c": 1000 // parts})
    loader = DataLoader(
        Streams(order, Shard), batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    found = [(name, number) for name, number in loader]
    expected = {(name, number) for name, length in {"a": 36, "b": 8, "c": 1000}.items() for number in range(length)}
    assert sorted(found) == sorted(expected)


def test_streams_that_are_sent_to_another_process_go_on_or_refuse() -> None:
    streams = mixed({name: list(plain(name)) for name in WEIGHTS})
    taken(streams, 70)
    sent = pickle.loads(pickle.dumps(streams))  # noqa: S301 - what we have just written
    assert taken(sent, 50) == taken(streams, 50)
    running = mixed(counting)
    taken(running, 3)
    with pytest.raises(TypeError, match="generator"):
        pickle.dumps(running)


def test_what_is_wrong_with_streams_is_named() -> None:
    with pytest.raises(ValueError, match="streams: expected samples each time 'a' is iterated, got none"):
        taken(mixed({"a": [], "b": [1], "c": [2]}), 50)
    with pytest.raises(ValueError, match="streams: expected samples each time 'a' is iterated, got none"):
        taken(mixed({"a": iter([1]), "b": [1], "c": [2]}), 50)
    with pytest.raises(ValueError, match="name_key: expected samples that are mappings, got tuple from 'b'"):
        taken(mixed(name_key="set"), 50)


@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_neither_a_mapping_nor_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match=r"streams: expected a mapping, or a function .* got list"):
        mixed(["a", "b"])  # pyright: ignore[reportArgumentType]


def test_a_state_of_something_else_is_refused() -> None:
    before = mixed()
    taken(before, 80)
    state = before.state_dict()
    with pytest.raises(ValueError, match="state: expected version 1, got 2"):
        mixed().load_state_dict({**state, "version": 2})
    with pytest.raises(ValueError, match="state: expected fingerprint"):
        mixed(draws=9).load_state_dict(state)
    with pytest.raises(ValueError, match=r"state: expected a stream '[abc]' without a state of its own, got another"):
        mixed(counting).load_state_dict(state)
    shorter = {name: list(plain(name))[:5] for name in WEIGHTS}
    with pytest.raises(ValueError, match=r"state: expected at least \d+ samples in the stream '[abc]', got 5"):
        mixed(shorter).load_state_dict(state)


def test_an_interleaving_prints_its_sampler_and_its_streams() -> None:
    streams = mixed(draws=9)
    assert repr(streams) == f"Interleave({streams.sampler!r}, 0 streams begun)"
