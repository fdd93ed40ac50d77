"""Datasets opened on demand, and mixtures of corpora."""

import pickle

import pytest

from moteur.sampling import EpochOrder, Pool, Sampler, WeightedOrder, paper_mixture, spread_weights


def letters(name: str) -> str:
    return {"a": "xyz", "b": "uvw"}[name]


def test_a_pool_opens_each_dataset_once_and_only_when_asked() -> None:
    asked: list[str] = []

    def open_dataset(name: str) -> str:
        asked.append(name)
        return letters(name)

    pool = Pool(open_dataset)
    assert pool.opened == ()
    assert [pool["b", 0], pool["b", 2], pool["a", 1]] == ["u", "w", "y"]
    assert asked == ["b", "a"]
    assert pool.opened == ("b", "a")


def test_a_pool_keeps_no_more_datasets_than_it_may_and_drops_the_one_used_longest_ago() -> None:
    asked: list[str] = []

    def open_dataset(name: str) -> range:
        asked.append(name)
        return range(9)

    pool = Pool(open_dataset, keep=2)
    assert [pool[name, place] for place, name in enumerate("abacab")] == [0, 1, 2, 3, 4, 5]
    assert asked == ["a", "b", "c", "b"]  # c took the place of b, and b that of c; a was used in between
    assert pool.opened == ("a", "b")
    sent = pickle.loads(pickle.dumps(Pool(letters, keep=1)))  # noqa: S301 - what we have just written
    assert [sent[name, 0] for name in "ab"] == ["x", "u"]
    assert sent.opened == ("b",)


def test_a_pool_that_may_keep_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep: expected at least 1 or None, got 0"):
        Pool(letters, keep=0)


def test_a_pool_sent_to_another_process_leaves_open_datasets_behind() -> None:
    pool = Pool(letters)
    assert pool["a", 0] == "x"
    sent = pickle.loads(pickle.dumps(pool))  # noqa: S301 - what we have just written
    assert sent.opened == ()
    assert sent["a", 0] == "x"


def test_a_rank_opens_no_dataset_that_the_assignment_did_not_give_it() -> None:
    frames = {f"{i:02d}": 20 for i in range(12)}
    order = EpochOrder(frames, rank=2, ranks=4)
    pool = Pool(lambda name: range(frames[name]))
    for item in Sampler(order):
        assert pool[item] == item[1]
    assert set(pool.opened) == set(order.datasets)
    assert len(order.datasets) == 3


def test_the_papers_mixture_is_its_third_table() -> None:
    table = {corpus.name: (corpus.frames, corpus.weight, corpus.has_actions) for corpus in paper_mixture()}
    assert table == {
        "InternData-A1": (396_000_000, 0.64, True),
        "RoboTwin": (17_000_000, 0.08, True),
        "AgiBot-World Beta": (206_000_000, 0.18, True),
        "RoboMind": (5_000_000, 0.02, True),
        "EgoDex": (68_000_000, 0.08, False),
    }


def test_the_weight_of_a_corpus_is_spread_over_its_datasets_by_size() -> None:
    members = {"robots": {"a": 300, "b": 100}, "video": {"c": 7}}
    weights = spread_weights({"robots": 0.9, "video": 0.1}, members)
    assert weights == pytest.approx({"a": 0.675, "b": 0.225, "c": 0.1})
    even = spread_weights({"robots": 0.9, "video": 0.1}, members, exponent=0.0)
    assert even == pytest.approx({"a": 0.45, "b": 0.45, "c": 0.1})
    rooted = spread_weights({"all": 1.0}, {"all": {"a": 900, "b": 100}}, exponent=0.5)
    assert rooted == pytest.approx({"a": 0.75, "b": 0.25})
    order = WeightedOrder({"a": 300, "b": 100, "c": 7}, weights)
    assert {name: float(p) for name, p in order.probabilities.items()} == pytest.approx(weights)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"members: expected the corpora \['x'\], got \['y'\]"):
        spread_weights({"x": 1.0}, {"y": {"a": 1}})
    with pytest.raises(ValueError, match="members: expected at least one dataset in 'x', got none"):
        spread_weights({"x": 1.0}, {"x": {}})
    with pytest.raises(ValueError, match="members: expected a size of at least 1 for 'a', got 0"):
        spread_weights({"x": 1.0}, {"x": {"a": 0}})
    with pytest.raises(ValueError, match="members: expected each dataset in one corpus, got 'a' in two"):
        spread_weights({"x": 1.0, "y": 1.0}, {"x": {"a": 1}, "y": {"a": 1}})
    with pytest.raises(ValueError, match="exponent: expected a finite number, got nan"):
        spread_weights({"x": 1.0}, {"x": {"a": 1}}, exponent=float("nan"))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.5, 0.0])
def test_a_corpus_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weights: expected a positive finite weight for 'y', got {weight}"):
        spread_weights({"x": 1.0, "y": weight}, {"x": {"a": 1}, "y": {"b": 2}})


def test_spread_weights_of_huge_sets_add_up_to_those_of_their_corpora() -> None:
    weights = spread_weights({"x": 0.7, "y": 0.3}, {"x": {"a": 10**12, "b": 1}, "y": {"c": 5}}, exponent=40.0)
    assert weights == pytest.approx({"a": 0.7, "b": 0.0, "c": 0.3})
    weights = spread_weights({"x": 1.0}, {"x": {"a": 10**12, "b": 1}}, exponent=-40.0)
    assert weights == pytest.approx({"a": 0.0, "b": 1.0})
