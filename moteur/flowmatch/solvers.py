"""Following a velocity field from noise to data with a fixed number of steps."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch.clocks import Clock, check_clock

Method = Literal["euler", "midpoint", "heun"]
"""Names of the integration rules; error after one unit of time is of order 1, 2 and 2 in the step size."""

Velocity = Callable[[Tensor, float], Tensor]
"""Velocity at a state and a time: takes the state and a Python float, gives a tensor of the state's shape."""


def solve(
    velocity: Velocity,
    start: Float[Tensor, "*shape"],
    *,
    steps: int = 10,
    method: Method = "euler",
    clock: Clock = "data",
) -> Float[Tensor, "*shape"]:
    r"""Integrate $dx/dt = v(x, t)$ from the noise end to the data end in `steps` equal steps.

    With `clock="data"` time runs from 0 to 1; with `clock="noise"` from 1 to 0, and the velocity is a derivative with
    respect to that time. A field written in one clock and its mirror image in the other give the same trajectory.

    Times are computed from the step's index, never accumulated, and handed over as Python floats: the loop holds no
    tensor that controls it, so it unrolls into one graph under `torch.compile(fullgraph=True)` and can be recorded.

    Args:
        velocity: Called once a step (`"euler"`) or twice (`"midpoint"`, `"heun"`).
        start: State at the noise end. It is read, never written; hand in float32 even where the network is bfloat16.
        steps: Number of steps; the paper uses 10.
        method: Integration rule.
        clock: The clock of the times that `velocity` receives and of the derivative that it returns.

    Returns:
        State at the data end, in the dtype of `start`: velocities are cast to it.

    Raises:
        ValueError: `steps` below 1, an unknown method or clock, a velocity whose shape is not the state's.

    Source:
        InternVLA-A1 paper (Euler, K = 10); midpoint and Heun are the two classic second-order Runge-Kutta rules.

    Examples:
        >>> import torch
        >>> solve(lambda x, time: torch.full_like(x, 2 * time), torch.zeros(1), steps=4, method="midpoint")
        tensor([1.])
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if method not in _RULES:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _RULES))}, got {method!r}")
    check_clock(clock)
    rule = _RULES[method]
    slope = partial(_slope, velocity, steps=steps, clock=clock)
    width = 1 / steps if clock == "data" else -1 / steps
    x = start
    for index in range(steps):
        x = rule(slope, x, float(index), width)
    return x


def _slope(velocity: Velocity, x: Tensor, position: float, *, steps: int, clock: Clock) -> Tensor:
    """Velocity at a position counted in steps from the noise end, in the dtype of the state."""
    time = (position if clock == "data" else steps - position) / steps
    value = velocity(x, time)
    if value.shape != x.shape:
        raise ValueError(f"velocity: expected a result of the state's shape {tuple(x.shape)}, got {tuple(value.shape)}")
    return value.to(x.dtype)


def _euler(slope: Velocity, x: Tensor, position: float, width: float) -> Tensor:
    return x + width * slope(x, position)


def _midpoint(slope: Velocity, x: Tensor, position: float, width: float) -> Tensor:
    halfway = x + width / 2 * slope(x, position)
    return x + width * slope(halfway, position + 0.5)


def _heun(slope: Velocity, x: Tensor, position: float, width: float) -> Tensor:
    first = slope(x, position)
    second = slope(x + width * first, position + 1)
    return x + width / 2 * (first + second)


_RULES: dict[Method, Callable[[Velocity, Tensor, float, float], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
}
