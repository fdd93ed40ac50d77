"""Datasets opened on demand."""

import pickle

import pytest
from torch.utils.data import DataLoader

from moteur.sampling import DatasetPool, EpochOrder, Sampler


def letters(name: str) -> str:
    return {"a": "xyz", "b": "uvw"}[name]


def test_a_pool_opens_each_dataset_once_and_only_when_asked() -> None:
    asked: list[str] = []

    def open_dataset(name: str) -> str:
        asked.append(name)
        return letters(name)

    pool = DatasetPool(open_dataset)
    assert pool.opened == ()
    assert [pool["b", 0], pool["b", 2], pool["a", 1]] == ["u", "w", "y"]
    assert asked == ["b", "a"]
    assert pool.opened == ("b", "a")


def test_a_pool_keeps_no_more_datasets_than_it_may_and_drops_the_one_used_longest_ago() -> None:
    asked: list[str] = []

    def open_dataset(name: str) -> range:
        asked.append(name)
        return range(9)

    pool = DatasetPool(open_dataset, max_open=2)
    assert [pool[name, place] for place, name in enumerate("abacab")] == [0, 1, 2, 3, 4, 5]
    assert asked == ["a", "b", "c", "b"]  # c took the place of b, and b that of c; a was used in between
    assert pool.opened == ("a", "b")
    sent = pickle.loads(pickle.dumps(DatasetPool(letters, max_open=1)))  # noqa: S301 - what we have just written
    assert [sent[name, 0] for name in "ab"] == ["x", "u"]
    assert sent.opened == ("b",)


def test_a_pool_that_may_keep_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_open: expected at least 1 or None, got 0"):
        DatasetPool(letters, max_open=0)


def test_a_pool_sent_to_another_process_leaves_open_datasets_behind() -> None:
    pool = DatasetPool(letters)
    assert pool["a", 0] == "x"
    sent = pickle.loads(pickle.dumps(pool))  # noqa: S301 - what we have just written
    assert sent.opened == ()
    assert sent["a", 0] == "x"


def test_a_rank_opens_no_dataset_that_the_assignment_did_not_give_it() -> None:
    frames = {f"{i:02d}": 20 for i in range(12)}
    order = EpochOrder(frames, rank=2, ranks=4)
    pool = DatasetPool(lambda name: range(frames[name]))
    for item in Sampler(order):
        assert pool[item] == item[1]
    assert set(pool.opened) == set(order.datasets)
    assert len(order.datasets) == 3


def test_a_mapping_of_open_datasets_will_do() -> None:
    pool = pickle.loads(pickle.dumps(DatasetPool({"a": "xyz", "b": "uvw"}, max_open=1)))  # noqa: S301 - what we have just written
    assert [pool["a", 2], pool["b", 0]] == ["z", "u"]
    assert repr(pool) == "DatasetPool(1 of at most 1 datasets open)"


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("datasets", [["xyz"], 3, None, [("a", "xyz")]])
def test_what_is_neither_a_mapping_nor_a_function_is_refused_before_the_first_sample(datasets: object) -> None:
    kind = type(datasets).__name__
    message = f"datasets: expected a mapping, or a function that opens one by its name, got {kind}"
    with pytest.raises(ValueError, match=message):
        DatasetPool(datasets)  # pyright: ignore[reportArgumentType]


def test_the_length_of_a_pool_over_a_mapping_is_the_number_of_samples_and_a_function_has_none() -> None:
    assert len(DatasetPool({"a": "xyz", "b": range(40)})) == 43
    with pytest.raises(TypeError, match="a pool that opens its datasets has no length"):
        len(DatasetPool(letters))


def test_samples_say_which_dataset_they_are_from_and_stay_as_they_are() -> None:
    held = {"a": [{"x": 1}, {"x": 2}], "b": [{"x": 3}]}
    for datasets in (held, held.__getitem__):
        pool = DatasetPool(datasets, name_key="set")
        order = EpochOrder({"a": 2, "b": 1}, seed=3)
        (batch,) = DataLoader(pool, batch_size=3, sampler=Sampler(order))  # pyright: ignore[reportArgumentType]
        assert sorted(zip(batch["set"], batch["x"].tolist(), strict=True)) == [("a", 1), ("a", 2), ("b", 3)]
        sent = pickle.loads(pickle.dumps(pool))  # noqa: S301 - what we have just written
        assert sent["b", 0] == {"x": 3, "set": "b"}
    assert held == {"a": [{"x": 1}, {"x": 2}], "b": [{"x": 3}]}
    assert DatasetPool(held)["a", 0] is held["a"][0]


def test_a_name_that_has_no_place_in_the_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="name_key: expected samples that are mappings, got str from 'a'"):
        DatasetPool(letters, name_key="set")["a", 0]
    with pytest.raises(ValueError, match="name_key: expected a key that the samples of 'a' lack, got 'x'"):
        DatasetPool({"a": [{"x": 1}]}, name_key="x")["a", 0]
