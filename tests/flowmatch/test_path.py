"""The straight path and what its velocity tells, in both clocks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.flowmatch import Clock, data_from_velocity, interpolate, noise_from_velocity, velocity_target

CLOCKS: list[Clock] = ["data", "noise"]


def ends(
    device: torch.device, *, shape: tuple[int, ...] = (5, 4, 3), dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    noise, data = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2))
    return noise, data


def test_time_zero_is_exactly_noise_and_time_one_exactly_data_and_the_other_clock_swaps_them(
    device: torch.device,
) -> None:
    noise, data = ends(device, dtype=torch.float32)
    assert torch.equal(interpolate(noise, data, 0.0), noise)
    assert torch.equal(interpolate(noise, data, 1.0), data)
    assert torch.equal(interpolate(noise, data, 1.0, clock="noise"), noise)
    assert torch.equal(interpolate(noise, data, 0.0, clock="noise"), data)


def test_each_sample_of_a_batch_is_taken_at_its_own_time(device: torch.device) -> None:
    noise, data = ends(device)
    time = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    mixed = interpolate(noise, data, time)
    for index in range(5):
        expected = (1 - index / 4) * noise[index] + index / 4 * data[index]
        torch.testing.assert_close(mixed[index], expected, rtol=1e-15, atol=1e-15)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(time=st.floats(0, 1))
def test_both_clocks_describe_the_same_point_and_opposite_velocities(time: float) -> None:
    noise, data = ends(torch.device("cpu"))
    forward = interpolate(noise, data, time)
    backward = interpolate(noise, data, 1 - time, clock="noise")
    torch.testing.assert_close(forward, backward, rtol=1e-14, atol=1e-15)
    assert torch.equal(velocity_target(noise, data), -velocity_target(noise, data, clock="noise"))


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_velocity_is_the_derivative_of_the_path(device: torch.device, clock: Clock) -> None:
    noise, data = ends(device)
    # The path is a straight line: a difference quotient is its derivative, to rounding, whatever the distance.
    slope = 2 * (interpolate(noise, data, 0.75, clock=clock) - interpolate(noise, data, 0.25, clock=clock))
    torch.testing.assert_close(slope, velocity_target(noise, data, clock=clock), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("time", [0.37, torch.linspace(0, 1, 5, dtype=torch.float64)])
def test_point_and_velocity_give_back_both_ends(device: torch.device, clock: Clock, time: float | torch.Tensor) -> None:
    noise, data = ends(device)
    time = time.to(device) if isinstance(time, torch.Tensor) else time
    x = interpolate(noise, data, time, clock=clock)
    velocity = velocity_target(noise, data, clock=clock)
    # A few roundings of numbers below 5: eight units in the last place.
    torch.testing.assert_close(data_from_velocity(x, velocity, time, clock=clock), data, rtol=0, atol=8 * 2**-51)
    torch.testing.assert_close(noise_from_velocity(x, velocity, time, clock=clock), noise, rtol=0, atol=8 * 2**-51)


def test_the_result_has_the_dtype_of_the_data_and_a_time_near_one_survives_bfloat16(device: torch.device) -> None:
    noise, data = ends(device, dtype=torch.bfloat16)
    noise = 1000 * noise
    # 1 - 2^-12 is 1 in bfloat16: rounding the time first would lose the noise, about 0.25 here, altogether.
    time = torch.full((5,), 1 - 2**-12, device=device)
    exact = interpolate(noise.double(), data.double(), time.double())
    mixed = interpolate(noise, data, time)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, exact.to(torch.bfloat16))


def test_gradients_reach_both_ends_with_the_weights_of_the_path(device: torch.device) -> None:
    noise, data = (end.requires_grad_() for end in ends(device))
    time = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    interpolate(noise, data, time).sum().backward()
    weights = time[:, None, None].expand_as(data)
    assert torch.equal(data.grad, weights)
    assert torch.equal(noise.grad, 1 - weights)


def test_no_argument_is_written_to(device: torch.device) -> None:
    noise, data = ends(device)
    kept = noise.clone(), data.clone()
    x = interpolate(noise, data, 0.5)
    data_from_velocity(x, velocity_target(noise, data), 0.5)
    noise_from_velocity(x, velocity_target(noise, data), 0.5)
    assert torch.equal(noise, kept[0])
    assert torch.equal(data, kept[1])


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_both_numbers(device: torch.device) -> None:
    noise, data = ends(device)
    with pytest.raises(ValueError, match=r"data: expected the shape of noise, \(5, 4, 3\), got \(5, 4, 2\)"):
        interpolate(noise, data[..., :2], 0.5)
    with pytest.raises(ValueError, match=r"velocity: expected the shape of x, \(5, 4, 3\), got \(5, 3, 3\)"):
        data_from_velocity(noise, data[:, :3], 0.5)
    with pytest.raises(
        ValueError, match=r"time: expected one value for each of the 5 samples, shape \(5,\), got shape \(4,\)"
    ):
        interpolate(noise, data, torch.zeros(4, device=device))
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"time: expected a number in \[0, 1\], got {wrong}"):
            interpolate(noise, data, wrong)
    with pytest.raises(ValueError, match=r"clock: expected 'data' \(1 is data\) or 'noise' \(1 is noise\), got 'tau'"):
        velocity_target(noise, data, clock="tau")
