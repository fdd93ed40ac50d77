"""Normalisation: an affine map and its exact inverse, and what it does with dimensions that hardly vary."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moteur.data import FieldStatistics, Robot, RobotStatistics, RobotTransform, Window
from moteur.data.set_statistics import Distribution
from moteur.data.statistics import Normalizer

STEPS = 6
WINDOW = Window(offsets=(-3, 0, 3), chunk=STEPS)


@given(
    values=hnp.arrays(np.float64, (7, 3), elements=st.floats(-1e6, 1e6)),
    seen=hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e6, 1e6) | st.just(2.5)),
    mode=st.sampled_from(["mean_std", "min_max", "quantiles", "none"]),
)
@settings(deadline=None, max_examples=80)
def test_normalising_and_back_is_the_identity(values: np.ndarray, seen: np.ndarray, mode: str) -> None:
    seen[:, 0] = 2.5  # one dimension never varies
    q01, q99 = (tuple(np.quantile(seen, point, axis=0).tolist()) for point in (0.01, 0.99))
    moments = (tuple(getattr(seen, name)(axis=0).tolist()) for name in ("mean", "std", "min", "max"))
    normalizer = Normalizer(FieldStatistics(5, *moments, q01=q01, q99=q99), mode=mode)
    there = normalizer(torch.from_numpy(values))
    # Rounding enters at the size of the offset as well as of the value.
    bound = 4 * np.finfo(np.float64).eps * (np.abs(values) + np.abs(normalizer.offset.numpy()))
    assert (np.abs(normalizer.inverse(there).numpy() - values) <= bound).all()
    assert torch.isfinite(there).all()
    assert normalizer.scale[0] == 1


@given(
    constant=st.floats(-1e15, 1e15),
    count=st.integers(1, 3000),
    mode=st.sampled_from(["mean_std", "min_max", "quantiles"]),
    hold=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_constant_dimension_becomes_exactly_zero_and_comes_back_to_the_bit(
    constant: float, count: int, mode: str, hold: bool
) -> None:
    seen = Distribution(1)
    seen.update(np.full((count, 1), constant))
    normalizer = Normalizer(seen.statistics(), mode=mode, hold=hold)
    values = torch.tensor([[constant]], dtype=torch.float64)
    assert normalizer(values).item() == 0
    assert normalizer.inverse(normalizer(values)).item() == constant
    assert normalizer.scale.item() == (1e-6 if hold else 1)


@pytest.mark.parametrize(
    ("noise", "mode"), [(0.0, "mean_std"), (1e-7, "mean_std"), (1e-7, "min_max"), (3e-6, "mean_std")]
)
def test_a_joint_that_stood_still_holds_still_whatever_is_predicted_for_it(
    robot: Robot, statistics: RobotStatistics, noise: float, mode: str
) -> None:
    moments = {"mean": 0.5, "std": noise, "min": 0.5 - 2 * noise, "max": 0.5 + 2 * noise}
    action = replace(statistics.action, **{name: (value,) * 3 for name, value in moments.items()})
    transform = RobotTransform(robot, replace(statistics, action=action), window=WINDOW, size=16, dims=5, mode=mode)
    found = transform.commands(torch.randn(4, STEPS, 5), torch.zeros(4, 3))
    torch.testing.assert_close(found, torch.full_like(found, 0.5), rtol=0, atol=2e-5)


def test_each_mode_maps_what_it_says() -> None:
    field = FieldStatistics(9, (1.0,), (2.0,), (-3.0,), (5.0,), q01=(-2.0,), q99=(4.0,))
    expected = {"mean_std": ([1.0, 3.000001], [0, 1]), "min_max": ([-3.0, 5.0], [-1, 1])}
    expected |= {"quantiles": ([-2.0, 4.0, 7.0], [-1, 1, 2]), "none": ([-2.0, 4.0], [-2, 4])}
    for mode, (values, mapped) in expected.items():
        found = Normalizer(field, mode=mode)(torch.tensor(values, dtype=torch.float64)[:, None])
        torch.testing.assert_close(found[:, 0], torch.tensor(mapped, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="statistics: expected quantiles for the mode 'quantiles', got none"):
        Normalizer(replace(field, q01=None), mode="quantiles")


def test_quantiles_that_are_equal_while_values_are_not_give_way_to_the_whole_range() -> None:
    field = FieldStatistics(999, (0.01,), (0.1,), (0.0,), (1.0,), q01=(0.0,), q99=(0.0,))
    for hold in (False, True):
        found = Normalizer(field, mode="quantiles", hold=hold)(torch.tensor([[0.0], [1.0]]))
        assert found[:, 0].tolist() == [0, 2]
