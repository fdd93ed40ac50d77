"""Moments and quantiles against numpy in float64, whatever the order and the memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moteur.data import Distribution
from moteur.data.multiset import Multiset

POINTS = [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]
SHAPE = st.tuples(st.integers(1, 60), st.just(2))
ROWS = hnp.arrays(np.float64, SHAPE, elements=st.floats(-1e100, 1e100))
TIED = hnp.arrays(np.float64, SHAPE, elements=st.sampled_from([-2.0, -0.0, 0.0, 1.5]))
# Squares of tiny numbers underflow: a robot's numbers are zero or at least a millionth.
PLAIN = hnp.arrays(np.float64, SHAPE, elements=st.integers(-(10**12), 10**12).map(lambda number: number * 1e-6))


def both_passes(rows: np.ndarray, limit: int, pieces: int) -> tuple[Distribution, np.ndarray]:
    parts = [Distribution(rows.shape[1], limit=limit) for _ in range(pieces)]
    for part, batch in zip(parts, np.array_split(rows, pieces), strict=True):
        part.update(batch)
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    refinement = None
    if whole.needs_refinement(POINTS):
        refinement = whole.refinement(POINTS)
        for batch in np.array_split(rows[::-1], 3):
            other = refinement.emptied()
            other.update(batch)
            refinement.merge(other)
    return whole, whole.quantiles(POINTS, refinement)


@given(rows=ROWS | TIED, limit=st.sampled_from([1, 2, 7, 1000]), pieces=st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_quantiles_are_the_order_statistics_of_numpy(rows: np.ndarray, limit: int, pieces: int) -> None:
    whole, quantiles = both_passes(rows, limit, pieces)
    position = np.array(POINTS) * (len(rows) - 1)
    ordered = np.sort(rows, axis=0)
    low, high = ordered[np.floor(position).astype(int)], ordered[np.ceil(position).astype(int)]
    assert np.array_equal(quantiles, low + (high - low) * (position - np.floor(position))[:, None])
    scale = np.abs(rows).max(initial=1e-300)
    np.testing.assert_allclose(quantiles / scale, np.quantile(rows / scale, POINTS, axis=0), rtol=0, atol=1e-14)
    assert np.array_equal(whole.min, rows.min(axis=0))
    assert np.array_equal(whole.max, rows.max(axis=0))
    assert whole.count == len(rows)


@given(rows=PLAIN, pieces=st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_moments_equal_two_passes_in_float64(rows: np.ndarray, pieces: int) -> None:
    whole, _ = both_passes(rows, 1000, pieces)
    scale = np.abs(rows).max(axis=0, initial=1e-300)
    np.testing.assert_allclose(whole.mean / scale, (rows / scale).mean(axis=0), rtol=0, atol=1e-14)
    # A variance is exact to its own rounding; near zero its root is exact to the root of that.
    np.testing.assert_allclose(whole.std / scale, (rows / scale).std(axis=0), rtol=1e-12, atol=1e-7)


def test_a_large_mean_does_not_cancel_a_small_spread() -> None:
    rng = np.random.default_rng(0)
    rows = 1e8 + rng.normal(size=(5000, 1)) * 1e-2
    whole, _ = both_passes(rows, 100, 7)
    np.testing.assert_allclose(whole.std, rows.std(axis=0), rtol=1e-6)
    naive = np.sqrt(np.maximum((rows**2).mean(axis=0) - rows.mean(axis=0) ** 2, 0))
    assert abs(naive[0] - rows.std()) > 0.1 * rows.std()


@given(
    values=st.lists(st.floats(-1e10, 1e10), min_size=1, max_size=80), cut=st.integers(0, 80), limit=st.integers(1, 20)
)
@settings(deadline=None, max_examples=80)
def test_counting_does_not_depend_on_the_order(values: list[float], cut: int, limit: int) -> None:
    at_once, left, right = (Multiset(limit) for _ in range(3))
    at_once.add(np.array(values))
    left.add(np.array(values[cut:], dtype=np.float64))
    right.add(np.array(values[:cut][::-1], dtype=np.float64))
    left.merge(right)
    assert left.shift == at_once.shift
    assert np.array_equal(left.keys, at_once.keys)
    assert np.array_equal(left.counts, at_once.counts)
    assert len(at_once.keys) <= limit
    assert int(at_once.counts.sum()) == len(values)


def test_memory_stays_within_the_limit() -> None:
    rng = np.random.default_rng(0)
    distribution = Distribution(1, limit=256)
    for _ in range(4):
        distribution.update(rng.normal(size=(70_000, 1)))
    distribution.fold()
    assert len(distribution.values[0].keys) <= 256
    assert not distribution._pending


def test_what_cannot_be_counted_is_refused() -> None:
    distribution = Distribution(2, limit=2)
    with pytest.raises(ValueError, match="rows must have 2 dimensions, got 3"):
        distribution.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rows must be finite, got 1 values that are not"):
        distribution.update(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="other must have 2 dimensions, got 1"):
        distribution.merge(Distribution(1))
    with pytest.raises(ValueError, match="a distribution without rows has no quantiles"):
        distribution.quantiles([0.5])
    distribution.update(np.arange(10.0).reshape(5, 2))
    with pytest.raises(ValueError, match="quantiles need a second pass here"):
        distribution.quantiles([0.5])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Multiset(0)
