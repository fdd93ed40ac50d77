"""The loader: the same samples whatever the workers, from wherever it is resumed, and honest throughput."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from toy_set import TOP, record

from moteur.data import Loader
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.loader import Throughput
from moteur.sampling import DatasetPool, EpochOrder, Sampler, WeightedOrder

# More workers than cores are slow, and that is all.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

ROOT = Path(__file__).parents[2]
FRAMES = {"near": 23, "far": 14}


class Numbers:
    """Item n of the dataset that starts at `first`, after a nap."""

    def __init__(self, first: int = 0, nap: float = 0.0) -> None:
        self.first, self.nap = first, nap

    def __getitem__(self, index: int) -> int:
        time.sleep(self.nap)
        return self.first + index


def loader(*, endless: bool = False, nap: float = 0.0, rank: int = 0, **options: object) -> Loader:
    ranked = {"rank": rank, "ranks": 2, "seed": 3}
    order = WeightedOrder(FRAMES, {"near": 1.0, "far": 3.0}, **ranked) if endless else EpochOrder(FRAMES, **ranked)
    pool = DatasetPool({"near": Numbers(0, nap), "far": Numbers(100, nap)}.__getitem__)
    return Loader(pool, Sampler(order), start_method="fork", **({"batch_size": 4} | options))


def taken(batches: Loader, count: int) -> list[list[int]]:
    """The next batches, over as many epochs as it takes."""
    found: list[list[int]] = []
    while len(found) < count:
        for batch in batches:
            found.append(batch.tolist())
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers: int, *, endless: bool) -> None:
    assert taken(loader(endless=endless, workers=workers), 13) == taken(loader(endless=endless), 13)


def test_an_epoch_holds_every_sample_once_and_all_ranks_make_as_many_steps() -> None:
    epochs = [list(loader(rank=rank, workers=rank)) for rank in (0, 1)]
    assert [len(epoch) for epoch in epochs] == [len(loader())] * 2
    assert [len(batch) for batch in epochs[0]] == [4, 4, 4, 4, 3]
    values = [value for epoch in epochs for batch in epoch for value in batch.tolist()]
    assert len(values) == 38  # 37 samples on two ranks: one of them is read again
    assert set(values) == {*range(23), *range(100, 114)}


@settings(max_examples=40)
@given(first=st.integers(0, 12), second=st.integers(0, 12), size=st.integers(1, 9), endless=st.booleans())
def test_a_resumed_stream_is_the_unbroken_one(first: int, second: int, size: int, *, endless: bool) -> None:
    whole = taken(loader(endless=endless, batch_size=size), first + second)
    before = loader(endless=endless, batch_size=size)
    found = taken(before, first)
    state = json.loads(json.dumps(before.state_dict()))
    after = loader(endless=endless, batch_size=size)
    after.load_state_dict(state)
    assert found + taken(after, second) == whole
    assert before.state_dict()["consumed"] == sum(map(len, found))


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 2), (2, 1)])
def test_it_resumes_with_another_number_of_workers(before: int, after: int) -> None:
    whole = taken(loader(), 12)
    broken = loader(workers=before)
    found = taken(broken, 7)  # the workers have read further ahead by now
    resumed = loader(workers=after)
    resumed.load_state_dict(broken.state_dict())
    assert found + taken(resumed, 5) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_again_goes_on_after_the_last_batch_that_was_handed_out(workers: int) -> None:
    batches = loader(workers=workers)
    assert taken(batches, 2) + taken(batches, 1) + taken(batches, 6) == taken(loader(), 9)


def test_a_concatenation_is_read_as_the_pool_is() -> None:
    order = EpochOrder(FRAMES, rank=1, ranks=2, seed=3)
    sampler = Sampler(order, concatenated={"near": 23, "far": 14})
    found = taken(Loader(ConcatDataset([list(range(23)), list(range(100, 114))]), sampler, batch_size=4), 9)  # pyright: ignore[reportArgumentType]
    assert found == taken(loader(rank=1), 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_one_set_stay_so_over_epochs_and_resumption(workers: int) -> None:
    def one_set(workers: int) -> Loader:
        pool = DatasetPool({"near": Numbers(0), "far": Numbers(100)})
        order = EpochOrder(FRAMES, rank=1, ranks=2, seed=3, batch_size=4)
        return Loader(pool, Sampler(order), batch_size=4, workers=workers, start_method="fork")

    whole, broken, resumed = taken(one_set(0), 20), one_set(workers), one_set(workers)
    assert all(len({number < 100 for number in batch}) == 1 for batch in whole)
    assert {number < 100 for batch in whole for number in batch} == {True, False}
    begun = taken(broken, 7)
    resumed.load_state_dict(broken.state_dict())
    assert begun + taken(resumed, 13) == whole


def test_batches_that_would_mix_sets_made_for_one_are_refused() -> None:
    for order in (EpochOrder(FRAMES, batch_size=4), WeightedOrder(FRAMES, None, batch_size=4)):
        with pytest.raises(ValueError, match="batch_size: expected 4, the order's for batches of one set, got 8"):
            Loader(DatasetPool({}), Sampler(order), batch_size=8)
        Loader(DatasetPool({}), Sampler(order), batch_size=2)


def as_accelerate_prepares(batches: Any, rank: int, ranks: int) -> Any:  # noqa: ANN401  # whatever it is given
    """What `accelerate.Accelerator.prepare` does with a loader, in 1.15.0, where this was compared with it.

    Of torch's `DataLoader`, each rank takes one batch in `ranks`; any other object is handed back.
    """
    return islice(batches, rank, None, ranks) if isinstance(batches, DataLoader) else batches


def test_a_trainer_that_shards_loaders_takes_nothing_from_one_that_is_sharded_already() -> None:
    found = [
        value for rank in (0, 1) for batch in as_accelerate_prepares(loader(rank=rank), rank, 2) for value in batch
    ]
    assert {int(value) for value in found} == {*range(23), *range(100, 114)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_that_is_left_early_goes_on_from_the_state_of_what_was_used(workers: int) -> None:
    """Without it, a loader with workers would leave out what they had read ahead."""
    pool, sampler = DatasetPool({"a": range(40)}), Sampler(EpochOrder({"a": 40}))
    plain = DataLoader(
        pool, 4, sampler=sampler, num_workers=workers, multiprocessing_context="fork" if workers else None
    )  # pyright: ignore[reportArgumentType]
    found = [batch.tolist() for batch in islice(plain, 2)]
    assert sampler.consumed == (8 if not workers else 24)
    sampler.load_state_dict(sampler.state_dict(consumed=8))
    assert sorted(value for batch in found + [batch.tolist() for batch in plain] for value in batch) == list(range(40))


RUN = """
import json, os, sys, time
from pathlib import Path
from moteur.data import Loader
from moteur.sampling import EpochOrder, DatasetPool, Sampler

record, workers = Path(sys.argv[1]), int(sys.argv[2])
sampler = Sampler(EpochOrder({"a": 50, "b": 17}, seed=5))
pool = DatasetPool({"a": range(50), "b": range(100, 117)}.__getitem__)
loader = Loader(pool, sampler, batch_size=3, workers=workers, start_method="fork")
done = {"steps": []}
if record.exists():
    done = json.loads(record.read_text())
    loader.load_state_dict(done["state"])
while True:
    for batch in loader:
        done["steps"].append(batch.tolist())
        done["state"] = loader.state_dict()
        # What was drawn and the state after it go into one file by one renaming: both are there, or neither.
        record.with_suffix(".new").write_text(json.dumps(done))
        os.replace(record.with_suffix(".new"), record)
        print(len(done["steps"]), flush=True)
        time.sleep(0.002)
"""


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for workers in (2, 0, 3):
        child = subprocess.Popen(  # noqa: S603  # our own script
            [sys.executable, "-c", RUN, str(tmp_path / "record"), str(workers)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(17):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    done = json.loads((tmp_path / "record").read_text())
    steps = done["steps"]
    pool = DatasetPool({"a": range(50), "b": range(100, 117)}.__getitem__)
    unbroken = Loader(pool, Sampler(EpochOrder({"a": 50, "b": 17}, seed=5)), batch_size=3)
    assert len(steps) >= 3 * 17
    assert steps == taken(unbroken, len(steps))
    assert done["state"] == unbroken.state_dict()


def test_spawned_workers_read_a_set_as_this_process_does(tmp_path: Path) -> None:
    root = record(tmp_path / "set", lengths=(7, 12))
    order = EpochOrder({"toy": 19}, seed=1)
    options = {"offsets": {TOP: (-2, 0, 2), "action": range(5)}, "keys": ["observation.state", "action", TOP]}
    expected = [LeRobotSet(root, **options)[frame] for frame in order.draw(0, 0, 19)[1].tolist()]
    pool = DatasetPool({"toy": LeRobotSet(root, **options)}.__getitem__)
    batches = list(Loader(pool, Sampler(order), batch_size=8, workers=2))
    for key in expected[0]:
        found = [part for batch in batches for part in batch[key]]
        for value, item in zip(found, expected, strict=True):
            assert torch.equal(value, item[key]) if isinstance(value, Tensor) else value == item[key]


def test_an_error_in_a_worker_names_the_file(tmp_path: Path) -> None:
    root = record(tmp_path / "set", lengths=(4,))
    pool = DatasetPool({"toy": LeRobotSet(root)}.__getitem__)
    (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1 and nothing else")
    batches = Loader(pool, Sampler(EpochOrder({"toy": 4})), batch_size=2, workers=1, start_method="fork")
    with pytest.raises(
        ValueError, match=r"data/chunk-000/file-000.parquet: expected a parquet file, got one that cannot be read"
    ):
        list(batches)


def test_iterating_draws_nothing_from_the_trainings_random_numbers() -> None:
    before = torch.get_rng_state()
    taken(loader(), 7)
    taken(loader(workers=1), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_throughput_adds_up() -> None:
    batches = loader(nap=0.005)
    for _ in batches:
        time.sleep(0.02)  # the training step: as long as reading its four samples
    throughput = batches.take_throughput()
    assert throughput.samples == 19
    assert throughput.waited >= 19 * 0.005
    assert throughput.seconds - throughput.waited >= 4 * 0.02
    assert 0.1 < throughput.wait_ratio < 0.9
    assert throughput.samples_per_second == 19 / throughput.seconds
    assert batches.take_throughput() == Throughput()
    assert Throughput().samples_per_second == Throughput().wait_ratio == 0
    assert Throughput(1, 2.0, 0.5) + Throughput(3, 2.0, 1.5) == Throughput(4, 4.0, 2.0)


class Noted(Numbers):
    """Notes each item that is read, in a file, as workers are other processes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __getitem__(self, index: int) -> int:
        with self.path.open("ab") as file:
            file.write(b".")
        return index


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 2), (2, 4)])
def test_workers_read_ahead_while_the_step_runs(tmp_path: Path, workers: int, ahead: int) -> None:
    path = tmp_path / "reads"
    pool = DatasetPool({"a": Noted(path)}.__getitem__)
    order = Sampler(EpochOrder({"a": 100}))
    batches = iter(Loader(pool, order, batch_size=4, workers=workers, prefetch=2, start_method="fork"))
    next(batches)
    deadline = time.monotonic() + 60
    while path.stat().st_size < 4 * (1 + ahead) and time.monotonic() < deadline:
        time.sleep(0.01)  # the training step, which asks for nothing
    assert path.stat().st_size == 4 * (1 + ahead)


def test_a_loader_says_what_it_gives_and_how_far_it_is() -> None:
    batches = loader(workers=2)
    taken(batches, 3)
    assert repr(batches) == "Loader(19 samples an epoch, batch_size=4, workers=2, consumed=12)"
    assert repr(loader(endless=True)) == "Loader(endless, batch_size=4, workers=0, consumed=0)"


def test_an_endless_order_has_no_length() -> None:
    with pytest.raises(TypeError, match="an endless sampler has no length"):
        len(loader(endless=True))


def test_a_state_of_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state: expected fingerprint .* it was saved by a sampler that draws"):
        loader().load_state_dict(loader(endless=True).state_dict())


def test_batches_are_pinned_where_there_is_a_device() -> None:
    batch = next(iter(loader(workers=1)))
    assert batch.is_pinned() == torch.cuda.is_available()
