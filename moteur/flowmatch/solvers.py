"""Fixed-step ODE solvers."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Method = Literal["euler", "midpoint", "heun"]
"""Name of an integration rule; the error is of order 1, 2 and 2 in the step size."""

Velocity = Callable[[Tensor, float], Tensor]
"""Velocity field: takes a state and a time, returns a tensor of the state's shape."""

_Increment = Callable[[Tensor, float], Tensor]
"""Velocity times step width, at a state and a position counted in steps (multiples of 1/2)."""


def integrate(
    velocity: Velocity,
    start: Float[Tensor, "*shape"],
    *,
    steps: int,
    method: Method,
    backward: bool,
    prefix: Float[Tensor, "batch delay *rest"] | None,
) -> Float[Tensor, "*shape"]:
    """Integrate a velocity field over the unit interval; see `StraightPath.solve`.

    Args:
        velocity: Velocity field.
        start: State at the first time.
        steps: Number of equal steps.
        method: Integration rule.
        backward: Run from time 1 to 0 instead of 0 to 1.
        prefix: Known beginning of the final state along axis 1.

    Raises:
        ValueError: As in `StraightPath.solve`.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if method not in _RULES:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _RULES))}, got {method!r}")
    increment = partial(_increment, velocity, steps=steps, backward=backward)
    if prefix is None or not (delay := _delay(prefix, start)):
        return _run(method, increment, start, steps)
    prefix = prefix.to(start.dtype)
    guided = partial(_guided, increment, (prefix - start[:, :delay]) / steps)
    # The straight line reaches the prefix up to rounding; the result holds it exactly.
    return torch.cat([prefix, _run(method, guided, start, steps)[:, delay:]], dim=1)


def _delay(prefix: Tensor, start: Tensor) -> int:
    """Length of a prefix that fits the state."""
    fits = start.ndim > 1 and prefix.ndim == start.ndim and prefix.shape[1] <= start.shape[1]
    if not fits or (prefix.shape[0], *prefix.shape[2:]) != (start.shape[0], *start.shape[2:]):
        raise ValueError(
            f"prefix: expected the first steps of a state of shape {tuple(start.shape)}, got {tuple(prefix.shape)}"
        )
    return prefix.shape[1]


def _increment(velocity: Velocity, x: Tensor, position: float, *, steps: int, backward: bool) -> Tensor:
    width, time = (-1 / steps, (steps - position) / steps) if backward else (1 / steps, position / steps)
    value = velocity(x, time)
    if value.shape != x.shape:
        raise ValueError(f"velocity: expected the shape of the state {tuple(x.shape)}, got {tuple(value.shape)}")
    return width * value.to(x.dtype)


def _guided(increment: _Increment, pull: Tensor, x: Tensor, position: float) -> Tensor:
    """The increment with its first actions replaced by `pull`."""
    return torch.cat([pull, increment(x, position)[:, pull.shape[1] :]], dim=1)


def _run(method: Method, increment: _Increment, x: Tensor, steps: int) -> Tensor:
    for index in range(steps):
        x = _RULES[method](increment, x, float(index))
    return x


def _euler(increment: _Increment, x: Tensor, position: float) -> Tensor:
    return x + increment(x, position)


def _midpoint(increment: _Increment, x: Tensor, position: float) -> Tensor:
    return x + increment(x + increment(x, position) / 2, position + 0.5)


def _heun(increment: _Increment, x: Tensor, position: float) -> Tensor:
    first = increment(x, position)
    return x + (first + increment(x + first, position + 1)) / 2


_RULES: dict[Method, Callable[[_Increment, Tensor, float], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
}
