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
    """Integrate a velocity field from time 0 to 1, or from 1 to 0 if `backward`; see `StraightPath.solve`."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if method not in _RULES:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _RULES))}, got {method!r}")
    delay, pull = 0, None
    if prefix is not None:
        delay = prefix.shape[1]
        if prefix.shape != start[:, :delay].shape:
            raise ValueError(
                f"prefix: expected the first steps of a state of shape {tuple(start.shape)}, got {tuple(prefix.shape)}"
            )
        prefix = prefix.to(start.dtype)
        pull = (prefix - start[:, :delay]) / steps
    increment = partial(_increment, velocity, pull, steps=steps, backward=backward)
    x = start
    for index in range(steps):
        x = _RULES[method](increment, x, float(index))
    # The straight line reaches the prefix up to rounding; the result holds it exactly.
    return x if prefix is None else torch.cat([prefix, x[:, delay:]], dim=1)


def _increment(
    velocity: Velocity, pull: Tensor | None, x: Tensor, position: float, *, steps: int, backward: bool
) -> Tensor:
    """Velocity times step width; the first actions move by `pull` instead, whatever the velocity says."""
    width, time = (-1 / steps, (steps - position) / steps) if backward else (1 / steps, position / steps)
    value = velocity(x, time)
    if value.shape != x.shape:
        raise ValueError(f"velocity: expected the shape of the state {tuple(x.shape)}, got {tuple(value.shape)}")
    expect_floats(velocity=value)
    change = width * value.to(x.dtype)
    return change if pull is None else torch.cat([pull, change[:, pull.shape[1] :]], dim=1)


def expect_floats(**tensors: Tensor) -> None:
    """Refuse integers and complex numbers by name: somewhere they would be rounded, or lose a part, in silence."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: expected floating point, got {tensor.dtype}")


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
