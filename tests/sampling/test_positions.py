"""Positions of an order that can be asked for, and mixtures of nothing."""

import numpy as np
import pytest

from moteur.sampling import EpochOrder, WeightedOrder
from moteur.sampling.sampler import Order


def orders() -> list[Order]:
    return [
        WeightedOrder({"a": 5}, {"a": 1.0}, draws=6),
        WeightedOrder({"a": 5}, {"a": 1.0}),
        EpochOrder({"a": 6}),
    ]


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("place", [0, 3, 6])
def test_no_positions_are_a_window_without_draws(order: Order, place: int) -> None:
    dataset, frame = order.draw(0, place, place)
    assert dataset.tolist() == frame.tolist() == []
    assert dataset.dtype == frame.dtype == np.int64


def test_an_empty_window_may_begin_where_a_block_does() -> None:
    endless = orders()[1]
    assert endless.draw(2, 4096, 4096)[0].size == 0
    assert endless.draw(2, 4096, 4097)[1].tolist() == endless.draw(2, 0, 4097)[1].tolist()[-1:]


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("window", [(-1, 0, 3), (0, -5, 3), (0, 5, 3)])
def test_positions_that_make_no_sense_are_named(order: Order, window: tuple[int, int, int]) -> None:
    epoch, start, stop = window
    with pytest.raises(ValueError, match=f"^epoch, start, stop: expected .* got {epoch}, {start} and {stop}$"):
        order.draw(*window)


@pytest.mark.parametrize("order", [orders()[0], orders()[2]])
def test_positions_past_the_end_of_an_epoch_are_named(order: Order) -> None:
    assert order.draw(1, 5, 6)[0].size == 1
    with pytest.raises(ValueError, match="0 <= start <= stop <= 6, got 1, 5 and 7"):
        order.draw(1, 5, 7)


def test_mixtures_of_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="frames: expected at least one dataset, got none"):
        WeightedOrder({}, {})
    with pytest.raises(ValueError, match="frames: expected at least one dataset, got none"):
        EpochOrder({})
    with pytest.raises(ValueError, match="weights: expected at least one above 0, got none"):
        WeightedOrder({"a": 5, "b": 5}, {"a": 0.0, "b": 0.0})
