"""Fixed-step ODE solvers, and the grids of times that they walk along."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Method = Literal["euler", "midpoint", "heun"]
"""Name of an integration rule; the error is of order 1, 2 and 2 in the step size."""

Velocity = Callable[[Tensor, Any], Tensor]
"""Velocity field: takes a state and a time, returns a tensor of the state's shape.

The time is a Python float, or a tensor where samples or action steps have times of their own."""

_Increment = Callable[[Tensor, Any], Tensor]
"""Velocity times step width, at a state and a time."""


class Step(NamedTuple):
    """One step of a grid: its times, its width, and the number of such steps in the whole way to the end."""

    start: Any
    middle: Any
    end: Any
    width: Any
    number: float


def equal_steps(start: float, end: float, steps: int) -> list[Step]:
    """Steps of equal width; their times are computed from the index, never accumulated."""
    if not 0 <= start <= 1 or start == end:
        raise ValueError(f"start_time: expected a number in [0, 1] other than {end:g}, got {start}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    halves = [(start * (2 * steps - half) + end * half) / (2 * steps) for half in range(2 * steps + 1)]
    width = (end - start) / steps
    first, middle, last = halves[:-1:2], halves[1::2], halves[2::2]
    return [Step(*times, width, steps) for times in zip(first, middle, last, strict=True)]


def steps_between(times: Sequence[float], end: float) -> list[Step]:
    """Steps from each time to the next; the last must be the end of the path."""
    ordered = all((second - first) * (2 * end - 1) > 0 for first, second in pairwise(times))
    if len(times) < 2 or not ordered or not 0 <= times[0] <= 1 or times[-1] != end:  # noqa: PLR2004
        raise ValueError(f"times: expected at least two, in order, inside [0, 1], the last {end:g}, got {list(times)}")
    whole = end - times[0]
    return [
        Step(first, (first + second) / 2, second, second - first, whole / (second - first))
        for first, second in pairwise(times)
    ]


def steps_of_each(times: Float[Tensor, " point *each"], state: Float[Tensor, "*shape"]) -> list[Step]:
    """Steps of which every sample, or every action step of it, has its own; values are not read."""
    expect_floats(times=times)
    each = times.shape[1:]
    if len(times) < 2 or not each or each != state.shape[: len(each)]:  # noqa: PLR2004
        raise ValueError(
            f"times: expected two or more for each sample or step of a state of shape {tuple(state.shape)}, "
            f"got shape {tuple(times.shape)}"
        )

    first, last = times[:-1], times[1:]
    widths = (last - first).reshape(-1, *each, *[1] * (state.ndim - len(each))).to(state.dtype)
    return [Step(*step, 1) for step in zip(first, (first + last) / 2, last, widths, strict=True)]


def integrate(
    velocity: Velocity,
    start: Float[Tensor, "*shape"],
    grid: Sequence[Step],
    *,
    method: Method,
    prefix: Float[Tensor, "batch delay *rest"] | None,
    clean: float | None,
    trajectory: bool,
) -> list[Float[Tensor, "*shape"]]:
    """The last state of a grid, or the states at all of its times; see `StraightPath.solve`.

    With `clean`, a time, the prefix has its value and that time from the first step on.
    """
    if method not in _RULES:
        raise ValueError(f"method: expected one of {', '.join(map(repr, _RULES))}, got {method!r}")
    moves: dict[float, Tensor] = {}
    if prefix is not None:
        known = start[:, : prefix.shape[1]]
        if prefix.shape != known.shape:
            raise ValueError(
                f"prefix: expected the first steps of a state of shape {tuple(start.shape)}, got {tuple(prefix.shape)}"
            )
        prefix = prefix.to(start.dtype)
        if clean is not None:
            start, known = _begun(start, prefix), prefix
            velocity = partial(_with_times_of_steps, velocity, prefix.shape[1], clean)
        moves = {number: (prefix - known) / number for number in {step.number for step in grid}}
    states = [start]
    for step in grid:
        increment = partial(_increment, velocity, moves.get(step.number), step.width)
        x = _RULES[method](increment, states[-1], step)
        states = [*states, x] if trajectory else [x]
    # The straight line reaches the prefix up to rounding; the result holds it exactly.
    return states if prefix is None else [*states[:-1], _begun(states[-1], prefix)]


def _begun(x: Tensor, prefix: Tensor) -> Tensor:
    """The state with other first actions."""
    return torch.cat([prefix, x[:, prefix.shape[1] :]], dim=1)


def _with_times_of_steps(velocity: Velocity, delay: int, known: float, x: Tensor, time: float) -> Tensor:
    """The velocity with a time for each action, `known` for the first ones."""
    times = torch.full(x.shape[:2], time, dtype=torch.float32, device=x.device)
    times[:, :delay] = known
    return velocity(x, times)


def _increment(velocity: Velocity, pull: Tensor | None, width: Any, x: Tensor, time: Any) -> Tensor:  # noqa: ANN401
    """Velocity times step width; the first actions move by `pull` instead, whatever the velocity says."""
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


def _euler(increment: _Increment, x: Tensor, step: Step) -> Tensor:
    return x + increment(x, step.start)


def _midpoint(increment: _Increment, x: Tensor, step: Step) -> Tensor:
    return x + increment(x + increment(x, step.start) / 2, step.middle)


def _heun(increment: _Increment, x: Tensor, step: Step) -> Tensor:
    first = increment(x, step.start)
    return x + (first + increment(x + first, step.end)) / 2


_RULES: dict[Method, Callable[[_Increment, Tensor, Step], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
}
