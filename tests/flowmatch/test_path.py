"""Points and velocities of the straight path, for noise at either end of time."""

import re
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.flowmatch import StraightPath

FORWARD, BACKWARD = StraightPath(noise_at=0), StraightPath(noise_at=1)
PATHS = pytest.mark.parametrize("path", [FORWARD, BACKWARD], ids=["noise_at=0", "noise_at=1"])


def ends(
    device: torch.device, *, shape: tuple[int, ...] = (5, 4, 3), dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    noise, data = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2))
    return noise, data


@pytest.mark.parametrize("noise_at", [0, 1])
def test_the_path_is_exactly_noise_at_the_named_time_and_exactly_data_at_the_other(
    device: torch.device, noise_at: Literal[0, 1]
) -> None:
    noise, data = ends(device, dtype=torch.float32)
    path = StraightPath(noise_at=noise_at)
    assert torch.equal(path.sample(noise, data, float(noise_at)).point, noise)
    assert torch.equal(path.sample(noise, data, 1.0 - noise_at).point, data)


@PATHS
def test_each_sample_of_a_batch_is_taken_at_its_own_time(device: torch.device, path: StraightPath) -> None:
    noise, data = ends(device)
    mixed = path.sample(noise, data, torch.linspace(0, 1, 5, dtype=torch.float64, device=device)).point
    for index in range(5):
        of_noise = index / 4 if path.noise_at else 1 - index / 4
        expected = of_noise * noise[index] + (1 - of_noise) * data[index]
        torch.testing.assert_close(mixed[index], expected, rtol=1e-15, atol=1e-15)


@PATHS
def test_each_step_of_a_chunk_is_taken_at_its_own_time(device: torch.device, path: StraightPath) -> None:
    noise, data = ends(device)
    times = torch.rand(5, 4, dtype=torch.float64, device=device)
    times[0] = 1 - path.noise_at
    point, velocity = path.sample(noise, data, times)
    for step in range(4):
        alone = path.sample(noise[:, step], data[:, step], times[:, step])
        assert torch.equal(point[:, step], alone.point)
        assert torch.equal(velocity[:, step], alone.velocity)
    assert torch.equal(point[0], data[0])
    assert torch.equal(path.sample(noise, data, times[1, 1]).point, path.sample(noise, data, times[1, 1].item()).point)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(t=st.floats(0, 1))
def test_both_clocks_describe_the_same_point_and_opposite_velocities(t: float) -> None:
    noise, data = ends(torch.device("cpu"))
    forward, backward = FORWARD.sample(noise, data, t), BACKWARD.sample(noise, data, 1 - t)
    torch.testing.assert_close(forward.point, backward.point, rtol=1e-14, atol=1e-15)
    assert torch.equal(forward.velocity, -backward.velocity)


@PATHS
def test_the_velocity_is_the_derivative_of_the_path(device: torch.device, path: StraightPath) -> None:
    noise, data = ends(device)
    early, late = path.sample(noise, data, 0.25), path.sample(noise, data, 0.75)
    assert torch.equal(early.velocity, late.velocity)
    # The path is a straight line: a difference quotient is its derivative, to rounding, whatever the distance.
    torch.testing.assert_close(2 * (late.point - early.point), early.velocity, rtol=1e-14, atol=1e-15)


@PATHS
def test_the_point_has_the_dtype_of_the_data_and_a_time_near_one_survives_bfloat16(
    device: torch.device, path: StraightPath
) -> None:
    noise, data = ends(device, dtype=torch.bfloat16)
    noise, data = 1000 * noise, 1000 * data
    # 1 - 2^-12 is 1 in bfloat16: rounding the time first would lose the far end, about 0.25 here, altogether.
    t = torch.full((5,), 1 - 2**-12, device=device)
    point = path.sample(noise, data, t).point
    assert point.dtype == torch.bfloat16
    assert torch.equal(point, path.sample(noise.double(), data.double(), t.double()).point.to(torch.bfloat16))


@PATHS
def test_gradients_reach_both_ends_with_the_weights_of_the_path(device: torch.device, path: StraightPath) -> None:
    noise, data = (end.requires_grad_() for end in ends(device))
    t = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    path.sample(noise, data, t).point.sum().backward()
    weights = t[:, None, None].expand_as(data)
    assert torch.equal(noise.grad, weights if path.noise_at else 1 - weights)
    assert torch.equal(data.grad, 1 - weights if path.noise_at else weights)


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_both_numbers(device: torch.device) -> None:
    noise, data = ends(device)
    with pytest.raises(ValueError, match=r"noise: expected the shape of data \(5, 4, 2\), got \(5, 4, 3\)"):
        FORWARD.sample(noise, data[..., :2], 0.5)
    for times in ((4,), (5, 1), (1,), (4, 5), (5, 4, 3)):
        with pytest.raises(ValueError, match=rf"t: expected shape \(5,\), got {re.escape(str(times))}"):
            FORWARD.sample(noise, data, torch.zeros(times, device=device))
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"t: expected a number in \[0, 1\], got {wrong}"):
            FORWARD.sample(noise, data, wrong)
    for wrong in (0.5, 2, "noise"):
        with pytest.raises(ValueError, match=rf"noise_at: expected 0 or 1, got {wrong!r}"):
            StraightPath(noise_at=wrong)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["noise", "data", "t"])
def test_numbers_that_are_not_real_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    given = {"noise": torch.zeros(2, 3), "data": torch.ones(2, 3), "t": torch.zeros(2)}
    given[name] = given[name].to(dtype)
    with pytest.raises(ValueError, match=f"^{name}: expected floating point, got {dtype}$"):
        FORWARD.sample(**given)


@pytest.mark.usefixtures("without_shape_checks")
def test_times_of_another_batch_do_not_make_more_samples() -> None:
    with pytest.raises(ValueError, match=r"t: expected shape \(1,\), got \(4,\)"):
        FORWARD.sample(torch.zeros(1, 4, 3), torch.ones(1, 4, 3), torch.zeros(4))
