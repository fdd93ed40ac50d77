"""Following a velocity field from noise to data with a fixed number of steps."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch.clocks import Clock, check_clock
from moteur.flowmatch.steps import Method, integrate

Velocity = Callable[[Tensor, float], Tensor]
"""Velocity at a state and a time: takes the state and a Python float, gives a tensor of the state's shape."""


def solve(
    velocity: Velocity,
    start: Float[Tensor, "*shape"],
    *,
    steps: int = 10,
    method: Method = "euler",
    clock: Clock = "data",
    prefix: Float[Tensor, "batch delay *rest"] | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Integrate $dx/dt = v(x, t)$ from the noise end to the data end in `steps` equal steps.

    With `clock="data"` time runs from 0 to 1; with `clock="noise"` from 1 to 0, and the velocity is a derivative with
    respect to that time. A field written in one clock and its mirror image in the other give the same trajectory.

    Times are computed from the step's index, never accumulated, and handed over as Python floats: the loop holds no
    tensor that controls it, so it unrolls into one graph under `torch.compile(fullgraph=True)` and can be recorded.

    Real-time chunking: a robot goes on with its running chunk while the next one is computed. `prefix` holds the
    actions it will have executed by then. They travel the straight line from their noise to themselves, whatever
    the velocity says of them, so that the rest of the chunk is computed with them in sight, and they come out
    exactly as given. An empty prefix changes nothing, not even a rounding.

    Args:
        velocity: Called once a step (`"euler"`) or twice (`"midpoint"`, `"heun"`).
        start: State at the noise end. It is read, never written; hand in float32 even where the network is bfloat16.
        steps: Number of steps; the paper uses 10.
        method: Integration rule.
        clock: The clock of the times that `velocity` receives and of the derivative that it returns.
        prefix: First actions of the chunk, known beforehand; batch and the axes after `delay` are those of `start`.

    Returns:
        State at the data end, in the dtype of `start`: velocities are cast to it.

    Raises:
        ValueError: `steps` below 1, an unknown method or clock, a velocity whose shape is not the state's, a prefix
            that is not a beginning of the state.

    Source:
        InternVLA-A1 paper (Euler, K = 10); midpoint and Heun are the two classic second-order Runge-Kutta rules.
        "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339, for the frozen prefix.

    Examples:
        >>> import torch
        >>> solve(lambda x, time: torch.full_like(x, 2 * time), torch.zeros(1), steps=4, method="midpoint")
        tensor([1.])
        >>> solve(lambda x, time: torch.ones_like(x), torch.zeros(1, 3), steps=4, prefix=torch.full((1, 1), 7.0))
        tensor([[7., 1., 1.]])
    """
    check_clock(clock)
    increment = partial(_increment, velocity, steps=steps, clock=clock)
    return integrate(increment, start, steps=steps, method=method, prefix=prefix)


def _increment(velocity: Velocity, x: Tensor, position: float, *, steps: int, clock: Clock) -> Tensor:
    """What one step adds at a position counted in steps from the noise end, in the dtype of the state."""
    width, time = (1 / steps, position / steps) if clock == "data" else (-1 / steps, (steps - position) / steps)
    value = velocity(x, time)
    if value.shape != x.shape:
        raise ValueError(f"velocity: expected a result of the state's shape {tuple(x.shape)}, got {tuple(value.shape)}")
    return width * value.to(x.dtype)
