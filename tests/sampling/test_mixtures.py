"""Mixtures of corpora."""

import pytest

from moteur.sampling import WeightedOrder, paper_mixture, spread_weights


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


def test_corpora_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"members: expected the corpora \['x'\], got \['y'\]"):
        spread_weights({"x": 1.0}, {"y": {"a": 1}})
    with pytest.raises(ValueError, match="members: expected datasets of its own for 'x', got none"):
        spread_weights({"x": 1.0}, {"x": {}})
    with pytest.raises(ValueError, match=r"members: expected datasets of its own for 'y', got \['a'\]"):
        spread_weights({"x": 1.0, "y": 1.0}, {"x": {"a": 1}, "y": {"a": 1}})


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("size", [float("nan"), float("inf"), -3, 0])
@pytest.mark.parametrize("first", [True, False])
def test_sizes_that_are_no_sizes_are_refused_wherever_they_stand(size: float, first: bool) -> None:
    sizes = {"bad": size, "good": 5} if first else {"good": 5, "bad": size}
    with pytest.raises(ValueError, match=rf"members: expected positive finite sizes in 'x', got .*'bad': {size}"):
        spread_weights({"x": 1.0}, {"x": sizes})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.5])
def test_a_corpus_weight_that_is_no_weight_is_refused_by_the_order(weight: float) -> None:
    weights = spread_weights({"x": 1.0, "y": weight}, {"x": {"a": 1}, "y": {"b": 2}})
    with pytest.raises(ValueError, match=f"weights: expected a finite weight of at least 0 for 'b', got {weight}"):
        WeightedOrder({"a": 1, "b": 2}, weights)


def test_spread_weights_of_huge_sets_add_up_to_those_of_their_corpora() -> None:
    weights = spread_weights({"x": 0.7, "y": 0.3}, {"x": {"a": 10**12, "b": 1}, "y": {"c": 5}}, exponent=40.0)
    assert weights == pytest.approx({"a": 0.7, "b": 0.0, "c": 0.3})
    weights = spread_weights({"x": 1.0}, {"x": {"a": 10**12, "b": 1}}, exponent=-40.0)
    assert weights == pytest.approx({"a": 0.0, "b": 1.0})
