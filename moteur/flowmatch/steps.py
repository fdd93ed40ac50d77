"""Integration rules, written in what one step adds, and the beginning of a chunk that is already decided."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Method = Literal["euler", "midpoint", "heun"]
"""Names of the integration rules; error after one unit of time is of order 1, 2 and 2 in the step size."""

Increment = Callable[[Tensor, float], Tensor]
"""Velocity times the width of a step, at a state and at a position counted in steps from the noise end."""


def integrate(
    increment: Increment,
    start: Float[Tensor, "*shape"],
    *,
    steps: int,
    method: Method = "euler",
    prefix: Float[Tensor, "batch delay *rest"] | None = None,
) -> Float[Tensor, "*shape"]:
    """What `solve` does, for a network whose read-out has the width of a step multiplied into its weights already.

    Args:
        increment: Called once a step (`"euler"`) or twice (`"midpoint"`, `"heun"`), at positions 0 to `steps`.
        start: State at the noise end. It is read, never written.
        steps: Number of steps.
        method: Integration rule.
        prefix: First actions of the chunk, known beforehand; see `solve`.

    Raises:
        ValueError: `steps` below 1, an unknown method, a prefix that is not a beginning of the state.

    Examples:
        >>> integrate(lambda x, position: torch.full_like(x, 0.25), torch.zeros(1), steps=4)
        tensor([1.])
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if method not in _RULES:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _RULES))}, got {method!r}")
    rule, x = _RULES[method], start
    delay = 0 if prefix is None else _checked_delay(prefix, start)
    if prefix is None or not delay:
        for index in range(steps):
            x = rule(increment, x, float(index))
        return x
    prefix = prefix.to(start.dtype)
    pull = (prefix - start[:, :delay]) / steps
    for index in range(steps):
        x = rule(lambda x, position: torch.cat([pull, increment(x, position)[:, delay:]], dim=1), x, float(index))
    return torch.cat([prefix, x[:, delay:]], dim=1)


def _checked_delay(prefix: Tensor, start: Tensor) -> int:
    """How many actions are decided; refuse what is not the beginning of a chunk of this shape."""
    fits = start.ndim > 1 and prefix.ndim == start.ndim and prefix.shape[1] <= start.shape[1]
    if not fits or (prefix.shape[0], *prefix.shape[2:]) != (start.shape[0], *start.shape[2:]):
        raise ValueError(
            f"prefix: expected the first steps of a state of shape {tuple(start.shape)}, got {tuple(prefix.shape)}"
        )
    return prefix.shape[1]


def _euler(increment: Increment, x: Tensor, position: float) -> Tensor:
    return x + increment(x, position)


def _midpoint(increment: Increment, x: Tensor, position: float) -> Tensor:
    return x + increment(x + increment(x, position) / 2, position + 0.5)


def _heun(increment: Increment, x: Tensor, position: float) -> Tensor:
    first = increment(x, position)
    return x + (first + increment(x + first, position + 1)) / 2


_RULES: dict[Method, Callable[[Increment, Tensor, float], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
}
