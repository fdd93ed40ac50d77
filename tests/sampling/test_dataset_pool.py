"""Datasets opened on demand."""

import pickle

import pytest

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
