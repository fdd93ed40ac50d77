"""`StraightPath.solve` against closed-form solutions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moteur.flowmatch import Method, StraightPath
from moteur.flowmatch.solvers import Velocity

METHODS: list[Method] = ["euler", "midpoint", "heun"]
FORWARD, BACKWARD = StraightPath(noise_at=0), StraightPath(noise_at=1)
ORDERS: list[tuple[Method, int]] = [("euler", 1), ("midpoint", 2), ("heun", 2)]
MEAN, SPREAD = 0.7, 0.4


def gaussian_velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
    """Exact marginal velocity when noise is N(0, 1) and data N(MEAN, SPREAD^2), drawn independently."""
    variance = (1 - tau) ** 2 + (tau * SPREAD) ** 2
    return MEAN + (tau * SPREAD**2 - (1 - tau)) / variance * (x - tau * MEAN)


def start_on(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-2, 2, 24, dtype=torch.float64, device=device).reshape(2, 4, 3).to(dtype)


def measured_order(field: Velocity, exact: torch.Tensor, start: torch.Tensor, method: Method) -> float:
    """Measured order of convergence between 64 and 128 steps, from the largest error."""
    errors = [(FORWARD.solve(field, start, steps=n, method=method) - exact).abs().max().item() for n in (64, 128)]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_a_linear_equation_is_solved_with_the_order_of_the_method(
    device: torch.device, method: Method, order: int
) -> None:
    start = start_on(device)
    assert measured_order(lambda x, _: -1.3 * x, start * math.exp(-1.3), start, method) == pytest.approx(
        order, abs=0.05
    )


@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_an_equation_driven_by_time_is_solved_with_the_order_of_the_method(
    device: torch.device, method: Method, order: int
) -> None:
    # dx/dt = -x + t from 0 to 1 ends at (x0 + 1) / e: times handed over one step too late would cost an order.
    start = start_on(device)
    assert measured_order(lambda x, t: t - x, (start + 1) / math.e, start, method) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_gaussian_noise_is_carried_to_the_gaussian_of_the_data(
    device: torch.device, method: Method, order: int
) -> None:
    start = start_on(device)
    exact = MEAN + SPREAD * start
    # At least: this field is so symmetric that midpoint gains an order.
    assert measured_order(gaussian_velocity, exact, start, method) > order - 0.05
    assert (FORWARD.solve(gaussian_velocity, start, steps=400, method=method) - exact).abs().max() < 5e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 3, 10, 37])
def test_both_clocks_give_the_same_trajectory(device: torch.device, method: Method, steps: int) -> None:
    forward: list[torch.Tensor] = []
    backward: list[torch.Tensor] = []

    def in_tau(x: torch.Tensor, tau: float) -> torch.Tensor:
        forward.append(x)
        return gaussian_velocity(x, tau)

    def in_s(x: torch.Tensor, s: float) -> torch.Tensor:
        backward.append(x)
        return -gaussian_velocity(x, 1 - s)

    start = start_on(device, torch.float32)
    forward.append(FORWARD.solve(in_tau, start, steps=steps, method=method))
    backward.append(BACKWARD.solve(in_s, start, steps=steps, method=method))
    # Float32: a rounding of 6e-8 a step on numbers below 3.
    torch.testing.assert_close(torch.stack(forward), torch.stack(backward), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [FORWARD, BACKWARD], ids=["noise_at=0", "noise_at=1"])
def test_the_velocity_of_a_path_leads_from_its_noise_to_its_data_in_one_step(
    device: torch.device, path: StraightPath, method: Method
) -> None:
    noise, data = start_on(device), start_on(device).flip(0) ** 2
    velocity = path.sample(noise, data, 0.5).velocity
    own = path.solve(lambda _x, _t: velocity, noise, steps=1, method=method)
    torch.testing.assert_close(own, data, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("euler", FORWARD, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("euler", BACKWARD, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("midpoint", FORWARD, [t for i in range(10) for t in (i / 10, (i + 0.5) / 10)]),
        ("heun", BACKWARD, [t for i in range(10) for t in ((10 - i) / 10, (9 - i) / 10)]),
    ],
)
def test_the_field_is_asked_at_exactly_these_times_as_python_floats(
    method: Method, path: StraightPath, expected: list[float]
) -> None:
    asked: list[float] = []

    def field(x: torch.Tensor, time: float) -> torch.Tensor:
        asked.append(time)
        return torch.zeros_like(x)

    path.solve(field, torch.zeros(1), steps=10, method=method)
    assert asked == expected
    assert all(type(time) is float for time in asked)


def test_the_start_is_read_and_never_written(device: torch.device) -> None:
    start = start_on(device)
    kept = start.clone()
    result = FORWARD.solve(gaussian_velocity, start, steps=3)
    assert torch.equal(start, kept)
    assert result.data_ptr() != start.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_state_keeps_its_dtype_whatever_the_velocitys(device: torch.device, dtype: torch.dtype) -> None:
    result = FORWARD.solve(lambda x, _: -x.to(dtype), start_on(device, torch.float32), steps=4)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_velocities_are_scaled_and_added_in_the_precision_of_the_state(
    device: torch.device, method: Method
) -> None:
    # A tenth of 1.0078125 has no bfloat16: rounded there, ten steps would end 2e-3 away.
    velocity = torch.full((2, 3), 1 + 2**-7, device=device, dtype=torch.bfloat16)
    end = FORWARD.solve(lambda _x, _t: velocity, torch.zeros(2, 3, device=device), steps=10, method=method)
    # Ten additions and products in float32, each off by half a unit of at most 2^-23.
    torch.testing.assert_close(end, torch.full_like(end, 1 + 2**-7), rtol=0, atol=20 * 2**-24)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_that_are_not_real_are_refused_by_name(dtype: torch.dtype) -> None:
    start = torch.ones(2, 4, 3)
    with pytest.raises(ValueError, match=f"^noise: expected floating point, got {dtype}$"):
        FORWARD.solve(gaussian_velocity, start.to(dtype))
    with pytest.raises(ValueError, match=f"^prefix: expected floating point, got {dtype}$"):
        FORWARD.solve(gaussian_velocity, start, prefix=start[:, :1].to(dtype))
    with pytest.raises(ValueError, match=f"^velocity: expected floating point, got {dtype}$"):
        FORWARD.solve(lambda x, _: x.to(dtype), start)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_flow_through_the_whole_solution(device: torch.device, method: Method) -> None:
    start = start_on(device).requires_grad_()
    FORWARD.solve(gaussian_velocity, start, steps=200, method=method).sum().backward()
    # The exact flow is MEAN + SPREAD * start; discretisation leaves at most a few parts in a thousand.
    torch.testing.assert_close(start.grad, torch.full_like(start, SPREAD), rtol=0, atol=5e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("without_shape_checks")
def test_the_loop_becomes_one_graph(device: torch.device, method: Method) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: FORWARD.solve(gaussian_velocity, x, method=method), fullgraph=True, backend=count
    )
    start = start_on(device)
    expected = FORWARD.solve(gaussian_velocity, start, method=method)
    assert torch.equal(compiled(start), expected)
    compiled(start + 1)
    assert len(graphs) == 1


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_both_numbers(device: torch.device) -> None:
    start = start_on(device)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps: expected at least 1, got {steps}"):
            FORWARD.solve(gaussian_velocity, start, steps=steps)
    with pytest.raises(ValueError, match="method: expected one of 'euler', 'midpoint', 'heun', got 'rk4'"):
        FORWARD.solve(gaussian_velocity, start, method="rk4")
    with pytest.raises(ValueError, match=r"velocity: expected the shape of the state \(2, 4, 3\), got \(4, 3\)"):
        FORWARD.solve(lambda x, _: x[0], start)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [FORWARD, BACKWARD], ids=["noise_at=0", "noise_at=1"])
def test_a_frozen_prefix_arrives_exactly_and_travels_the_straight_line(
    device: torch.device, method: Method, path: StraightPath
) -> None:
    start = start_on(device)
    prefix = torch.linspace(3, 4, 2 * 2 * 3, dtype=torch.float64, device=device).reshape(2, 2, 3)
    seen: list[tuple[torch.Tensor, float]] = []

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        seen.append((x, time))
        return torch.full_like(x, 100.0)

    end = path.solve(velocity, start, steps=5, method=method, prefix=prefix)
    assert torch.equal(end[:, :2], prefix)
    for x, time in seen:
        torch.testing.assert_close(x[:, :2], path.sample(start[:, :2], prefix, time).point)


@pytest.mark.parametrize("method", METHODS)
def test_what_follows_a_prefix_is_computed_with_the_prefix_in_sight(device: torch.device, method: Method) -> None:
    # A field in which every action drifts towards the mean of all: with the prefix on its line, an independent
    # integration of the free actions alone must agree.
    start, steps = start_on(device), 400
    prefix = torch.full((2, 1, 3), 5.0, dtype=torch.float64, device=device)

    def whole(x: torch.Tensor, _: float) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True) - x

    def rest(x: torch.Tensor, tau: float) -> torch.Tensor:
        line = start[:, :1] + tau * (prefix - start[:, :1])
        return torch.cat([line, x], dim=1).mean(dim=1, keepdim=True) - x

    end = FORWARD.solve(whole, start, steps=steps, method=method, prefix=prefix)
    torch.testing.assert_close(end[:, 1:], FORWARD.solve(rest, start[:, 1:], steps=steps, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_prefix_changes_no_bit(device: torch.device, method: Method) -> None:
    start = start_on(device, torch.float32)
    plain = FORWARD.solve(gaussian_velocity, start, steps=7, method=method)
    assert torch.equal(FORWARD.solve(gaussian_velocity, start, steps=7, method=method, prefix=start[:, :0]), plain)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 2, 3), (2, 2, 4), (2, 2)])
def test_a_prefix_that_is_no_beginning_of_the_chunk_is_refused(shape: tuple[int, ...]) -> None:
    message = rf"prefix: expected the first steps of a state of shape \(2, 4, 3\), got \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        FORWARD.solve(gaussian_velocity, start_on(torch.device("cpu")), prefix=torch.zeros(shape, dtype=torch.float64))
