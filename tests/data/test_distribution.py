"""Moments and quantiles against numpy in float64, whatever the order and the memory."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moteur.data.set_statistics import BINS, Distribution

POINTS = [0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0]
SHAPE = st.tuples(st.integers(1, 60), st.just(2))
ROWS = hnp.arrays(np.float64, SHAPE, elements=st.floats(-1e100, 1e100))
TIED = hnp.arrays(np.float64, SHAPE, elements=st.sampled_from([-2.0, -0.0, 0.0, 1.5]))
# Squares of tiny numbers underflow: a robot's numbers are zero or at least a millionth.
PLAIN = hnp.arrays(np.float64, SHAPE, elements=st.integers(-(10**12), 10**12).map(lambda number: number * 1e-6))
# Skewed, heavy-tailed, offset, and with much of the weight on one value.
SKEWED: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(0, 0.1, size),
    "lognormal": lambda rng, size: rng.lognormal(0, 2, size),
    "negative Pareto": lambda rng, size: -rng.pareto(1.5, size),
    "Cauchy": lambda rng, size: rng.standard_cauchy(size),
    "offset": lambda rng, size: 1000 + rng.normal(0, 0.01, size),
    "gripper": lambda rng, size: np.where(rng.random(size) < 0.7, 0.5, rng.random(size)),
    "float32": lambda rng, size: rng.normal(0, 1, size).astype(np.float32).astype(np.float64),
}


def gathered(rows: np.ndarray, bins: int, pieces: int) -> Distribution:
    parts = [Distribution(rows.shape[1], bins=bins) for _ in range(pieces)]
    for part, batch in zip(parts, np.array_split(rows, pieces), strict=True):
        part.update(batch)
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def interpolated(values: np.ndarray) -> np.ndarray:
    """Quantiles by the definition."""
    position, ordered = np.array(POINTS) * (len(values) - 1), np.sort(values, axis=0)
    low, high = ordered[np.floor(position).astype(int)], ordered[np.ceil(position).astype(int)]
    return low + (high - low) * (position - np.floor(position))[:, None]


@given(rows=ROWS | TIED, pieces=st.integers(1, 5))
def test_quantiles_of_few_distinct_values_are_exactly_the_order_statistics_of_numpy(
    rows: np.ndarray, pieces: int
) -> None:
    whole = gathered(rows, 1000, pieces)
    quantiles = whole.quantiles(POINTS)
    assert np.array_equal(quantiles, np.clip(interpolated(rows), rows.min(axis=0), rows.max(axis=0)))
    scale = np.abs(rows).max(initial=1e-300)
    np.testing.assert_allclose(quantiles / scale, np.quantile(rows / scale, POINTS, axis=0), rtol=0, atol=1e-14)
    assert np.array_equal(whole.min, rows.min(axis=0))
    assert np.array_equal(whole.max, rows.max(axis=0))
    assert whole.count == len(rows)


@pytest.mark.parametrize("kind", SKEWED)
def test_quantiles_of_skewed_data_are_within_the_stated_error_of_numpys(kind: str) -> None:
    rows = SKEWED[kind](np.random.default_rng(0), 300_000)[:, None]
    found = gathered(rows, BINS, 3).quantiles(POINTS)
    ordered, position = np.sort(rows[:, 0]), np.array(POINTS) * (len(rows) - 1)
    around = np.maximum(*(np.abs(ordered[side(position).astype(int)]) for side in (np.floor, np.ceil)))
    error = np.abs(found[:, 0] - np.quantile(rows[:, 0], POINTS))
    assert (error < 2.0**-10 * around + 1e-300).all()
    assert (np.diff(found[:, 0]) >= 0).all()
    assert rows.min() <= found.min() <= found.max() <= rows.max()
    if kind == "gripper":
        assert found[3, 0] == found[4, 0] == 0.5  # a value that is repeated stays itself


def test_numbers_of_every_size_that_float32_holds_keep_six_bits() -> None:
    sizes = 2.0 ** np.arange(-149, 128)[:, None] * (1 + np.arange(256) / 256)
    rows = np.random.default_rng(0).permutation(np.concatenate([sizes.ravel(), [0.0], -sizes.ravel()]))[:, None]
    found, expected = gathered(rows, BINS, 2).quantiles(POINTS), interpolated(rows)
    assert found[4] == expected[4] == 0
    error = np.abs(np.delete(found / np.where(expected == 0, 1, expected), 4) - 1)
    assert 2.0**-8 < error.max() < 2.0**-6


@given(rows=PLAIN, pieces=st.integers(1, 6))
def test_moments_equal_two_passes_in_float64(rows: np.ndarray, pieces: int) -> None:
    whole = gathered(rows, 1000, pieces)
    scale = np.abs(rows).max(axis=0, initial=1e-300)
    np.testing.assert_allclose(whole.mean / scale, (rows / scale).mean(axis=0), rtol=0, atol=1e-14)
    # A variance is exact to its own rounding; near zero its root is exact to the root of that.
    np.testing.assert_allclose(whole.std / scale, (rows / scale).std(axis=0), rtol=1e-12, atol=1e-7)


def test_a_large_mean_does_not_cancel_a_small_spread() -> None:
    rng = np.random.default_rng(0)
    rows = 1e8 + rng.normal(size=(5000, 1)) * 1e-2
    whole = gathered(rows, 100, 7)
    np.testing.assert_allclose(whole.std, rows.std(axis=0), rtol=1e-6)
    naive = np.sqrt(np.maximum((rows**2).mean(axis=0) - rows.mean(axis=0) ** 2, 0))
    assert abs(naive[0] - rows.std()) > 0.1 * rows.std()


@given(rows=ROWS, bins=st.integers(2, 20), seed=st.integers(0, 9), pieces=st.integers(1, 5))
def test_quantiles_do_not_depend_on_the_order(rows: np.ndarray, bins: int, seed: int, pieces: int) -> None:
    at_once = gathered(rows, bins, 1)
    shuffled = gathered(np.random.default_rng(seed).permutation(rows), bins, pieces)
    assert np.array_equal(at_once.quantiles(POINTS), shuffled.quantiles(POINTS))
    for part in at_once.histograms:
        assert len(part.keys) <= bins
        assert int(part.counts.sum()) == len(rows)


def test_memory_stays_within_the_limit() -> None:
    rng = np.random.default_rng(0)
    distribution = Distribution(1, bins=256)
    for _ in range(4):
        distribution.update(rng.normal(size=(70_000, 1)))
    distribution.fold()
    assert len(distribution.histograms[0].keys) <= 256
    assert not distribution._pending


def test_what_cannot_be_counted_is_refused() -> None:
    distribution = Distribution(2)
    with pytest.raises(ValueError, match="rows: expected finite numbers, got 1 that are not"):
        distribution.update(np.array([[0.0, np.nan]]))
