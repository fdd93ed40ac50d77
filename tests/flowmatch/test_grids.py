"""Grids of times, starts inside the path and trajectories, against loops as torchdiffeq and flow_matching walk them."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moteur.flowmatch import Method, StraightPath

METHODS: list[Method] = ["euler", "midpoint", "heun"]
FORWARD, BACKWARD = StraightPath(noise_at=0), StraightPath(noise_at=1)
PATHS = pytest.mark.parametrize("path", [FORWARD, BACKWARD], ids=["noise_at=0", "noise_at=1"])
EXACT = {"rtol": 1e-14, "atol": 1e-15}


def field(x: Tensor, time: float | Tensor) -> Tensor:
    """A velocity that depends on the state, on its neighbours and on the time of each sample or action."""
    if isinstance(time, Tensor):
        time = time.reshape(*time.shape, *[1] * (x.ndim - time.ndim))
    return torch.sin(3 * x) + x.mean(dim=1, keepdim=True) * time - time**2


def odeint(f: Callable[[Tensor, float], Tensor], x: Tensor, times: list[float], method: Method) -> list[Tensor]:
    """Fixed-step integration along a grid, a state for each of its times: what torchdiffeq's `odeint` returns."""
    states = [x]
    for now, after in pairwise(times):
        h, slope = after - now, f(x, now)
        if method == "midpoint":
            slope = f(x + h / 2 * slope, now + h / 2)
        elif method == "heun":
            slope = (slope + f(x + h * slope, after)) / 2
        x = x + h * slope
        states.append(x)
    return states


def start_on(device: torch.device) -> Tensor:
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)


def shifted(steps: int, shift: float) -> list[float]:
    """The times from noise at 1 that diffusers' flow-matching schedulers make of equal steps."""
    equal = [1 - step / steps for step in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in equal]


@pytest.mark.parametrize("method", METHODS)
@PATHS
def test_a_grid_of_times_is_walked_as_torchdiffeq_walks_it(
    device: torch.device, path: StraightPath, method: Method
) -> None:
    times = shifted(7, 3.0) if path.noise_at else [1 - t for t in shifted(7, 3.0)]
    expected = odeint(field, start_on(device), times, method)
    found = path.solve(field, start_on(device), times=times, method=method, trajectory=True)
    torch.testing.assert_close(found, torch.stack(expected), **EXACT)
    assert torch.equal(found[0], start_on(device))
    assert torch.equal(path.solve(field, start_on(device), times=times, method=method), found[-1])


@pytest.mark.parametrize("method", METHODS)
@PATHS
def test_equal_steps_are_a_grid_of_equal_steps(device: torch.device, path: StraightPath, method: Method) -> None:
    times = [k / 9 for k in range(10)] if path is FORWARD else [(9 - k) / 9 for k in range(10)]
    expected = odeint(field, start_on(device), times, method)
    found = path.solve(field, start_on(device), steps=9, method=method, trajectory=True)
    torch.testing.assert_close(found, torch.stack(expected), **EXACT)


@pytest.mark.parametrize("method", METHODS)
@PATHS
def test_a_start_inside_goes_on_with_the_rest_of_a_trajectory(
    device: torch.device, path: StraightPath, method: Method
) -> None:
    whole = path.solve(field, start_on(device), steps=10, method=method, trajectory=True)
    begin = 0.6 if path.noise_at else 0.4
    rest = path.solve(field, whole[4], steps=6, start_time=begin, method=method, trajectory=True)
    torch.testing.assert_close(rest, whole[4:], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [None, 4])
def test_times_of_each_sample_or_step_are_those_of_solving_it_alone(
    device: torch.device, method: Method, steps: int | None
) -> None:
    start, draw = start_on(device), torch.Generator().manual_seed(1)
    each = (2,) if steps is None else (2, steps)
    times = torch.rand(5, *each, generator=draw, dtype=torch.float64).sort(dim=0).values.to(device)

    def alone(x: Tensor, time: float | Tensor) -> Tensor:
        time = time.reshape(*time.shape, *[1] * (x.ndim - time.ndim)) if isinstance(time, Tensor) else time
        return torch.sin(3 * x) * time - time**2  # nobody looks at anybody else

    found = FORWARD.solve(alone, start, times=times, method=method, trajectory=True)
    for sample in range(2):
        for step in range(4):
            own = times[(slice(None), sample, step)[: times.ndim]].tolist()
            expected = torch.stack(odeint(alone, start[sample, step], own, method))
            torch.testing.assert_close(found[:, sample, step], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_shifted_grid_keeps_the_order_of_the_method(device: torch.device, method: Method) -> None:
    # dx/dt = -x from 1 to 0 ends at x0 e.
    start = start_on(device)
    errors = [
        (BACKWARD.solve(lambda x, _: -x, start, times=shifted(n, 3.0), method=method) - start * math.e).abs().max()
        for n in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1 if method == "euler" else 2, abs=0.06)


@PATHS
def test_a_noised_prefix_stays_on_its_line_along_any_grid(device: torch.device, path: StraightPath) -> None:
    start, prefix = start_on(device), torch.full((2, 2, 3), 5.0, dtype=torch.float64, device=device)
    for tau in ([0.2, 0.5, 0.85, 1.0], [0.2, 0.4, 0.6, 0.8, 1.0]):
        times = [1 - t for t in tau] if path.noise_at else tau
        grid = {"times": times} if len(tau) == 4 else {"start_time": times[0], "steps": 4}
        states = path.solve(field, start, prefix=prefix, trajectory=True, **grid)
        for state, time in zip(states, times, strict=True):
            done = (time - times[0]) / (times[-1] - times[0])
            line = start[:, :2] + done * (prefix - start[:, :2])
            torch.testing.assert_close(state[:, :2], line, rtol=1e-13, atol=1e-13)
        assert torch.equal(states[-1][:, :2], prefix)


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_grids_become_one_graph(device: torch.device) -> None:
    start = start_on(device)
    each = torch.linspace(0, 1, 4, dtype=torch.float64, device=device)[:, None].expand(4, 2)
    for options in ({"times": [0.0, 0.3, 1.0], "trajectory": True}, {"times": each}, {"start_time": 0.5, "steps": 2}):
        compiled = torch.compile(lambda x, o=options: FORWARD.solve(field, x, **o), fullgraph=True, backend="eager")
        assert torch.equal(compiled(start), FORWARD.solve(field, start, **options))


@pytest.mark.usefixtures("without_shape_checks")
def test_times_that_are_no_way_to_the_data_are_named(device: torch.device) -> None:
    start = start_on(device)
    for wrong in ([], [1.0], [0.0, 0.5], [0.0, 0.6, 0.4, 1.0], [0.0, 0.5, 0.5, 1.0], [-0.1, 1.0], [0.0, math.nan, 1.0]):
        with pytest.raises(
            ValueError, match=r"times: expected at least two, in order, inside \[0, 1\], the last 1, got"
        ):
            FORWARD.solve(field, start, times=wrong)
    with pytest.raises(ValueError, match=r"times: .* the last 0, got \[0\.0, 1\.0\]"):
        BACKWARD.solve(field, start, times=[0.0, 1.0])
    for wrong in (1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=rf"start_time: expected a number in \[0, 1\] other than 1, got {wrong}"):
            FORWARD.solve(field, start, start_time=wrong)
    with pytest.raises(ValueError, match=r"start_time: expected None beside times, whose first is the start, got 0\.5"):
        FORWARD.solve(field, start, times=[0.5, 1.0], start_time=0.5)
    for shape in ((5,), (1, 2), (5, 3), (5, 2, 3), (5, 2, 4, 2)):
        with pytest.raises(
            ValueError, match=r"times: expected two or more for each sample or step of a state of shape"
        ):
            FORWARD.solve(field, start, times=torch.zeros(shape, device=device))
    with pytest.raises(
        ValueError, match="prefix: expected None beside times of each sample, which can hold it, got one"
    ):
        FORWARD.solve(field, start, times=torch.zeros(5, 2, device=device), prefix=start[:, :1])
