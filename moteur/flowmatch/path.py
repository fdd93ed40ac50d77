"""The straight path between noise and data, in one fixed clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moteur.flowmatch.guidance import Falloff, corrected, prefix_weights
from moteur.flowmatch.solvers import (
    Method,
    Velocity,
    equal_steps,
    expect_floats,
    integrate,
    steps_between,
    steps_of_each,
)


class PathSample(NamedTuple):
    """A point of the path and its velocity there: the input and the target of one training step."""

    point: Float[Tensor, "batch ..."]
    velocity: Float[Tensor, "batch ..."]


@dataclass(frozen=True)
class StraightPath:
    r"""Straight path from a noise sample $\epsilon$ to a data sample $a$.

    | `noise_at` | point at time t | velocity | used by |
    |---|---|---|---|
    | 0 | $(1-t)\,\epsilon + t\,a$ | $a - \epsilon$ | the papers of InternVLA-A1 and rectified flow |
    | 1 | $t\,\epsilon + (1-t)\,a$ | $\epsilon - a$ | the released code of InternVLA-A1, pi0 |

    The time convention (the clock) is chosen once, here. Training and solving with the same path object cannot mix up
    the direction of time or the sign of the velocity.

    Args:
        noise_at: The time, 0 or 1, at which the path is pure noise. The data is at the other end.

    Raises:
        ValueError: `noise_at` is neither 0 nor 1.

    Source:
        Rectified flow, Liu et al., arXiv 2209.03003.

    Examples:
        >>> path = StraightPath(noise_at=0)
        >>> noise, data = torch.zeros(1, 2), torch.tensor([[4.0, 8.0]])
        >>> point, velocity = path.sample(noise, data, 0.25)
        >>> point, velocity
        (tensor([[1., 2.]]), tensor([[4., 8.]]))
        >>> path.solve(lambda x, t: velocity, noise, steps=2)
        tensor([[4., 8.]])
    """

    noise_at: Literal[0, 1]

    def __post_init__(self) -> None:
        if self.noise_at not in {0, 1}:
            raise ValueError(f"noise_at: expected 0 or 1, got {self.noise_at!r}")

    @property
    def data_at(self) -> float:
        """The time, 0 or 1, at which the path is data."""
        return 1.0 - self.noise_at

    def sample(
        self, noise: Float[Tensor, "batch ..."], data: Float[Tensor, "batch ..."], t: Float[Tensor, "..."] | float
    ) -> PathSample:
        """Interpolate between noise and data, and give the velocity that a network should predict there.

        Args:
            noise: Sample at the noise end.
            data: Sample at the data end, of the same shape.
            t: Time in [0, 1]: one value per sample, (batch,), or one per action step, (batch, step), or one for all, as
                a Python float or a tensor without axes. The range of a tensor is not checked, since reading its values
                would make the host wait for the device.

        Returns:
            A named tuple of `point`, in the dtype of `data`, and `velocity`. The interpolation runs in the widest dtype
                among the arguments and is rounded once, so that a time close to 1 keeps its meaning in bfloat16.

        Raises:
            ValueError: The shapes differ, a tensor is not floating point, there is not one time per sample or step, or
                a Python float is outside [0, 1].
        """
        expect_floats(noise=noise, data=data)
        if noise.shape != data.shape:
            raise ValueError(f"noise: expected the shape of data {tuple(data.shape)}, got {tuple(noise.shape)}")
        if isinstance(t, Tensor):
            expect_floats(t=t)
            if t.shape not in {(), data.shape[:1], data.shape[:2]}:
                raise ValueError(
                    f"t: expected shape {tuple(data.shape[:1])}, got {tuple(t.shape)} "
                    f"(a time for each step has shape {tuple(data.shape[:2])})"
                )
            # einops cannot append a variable number of axes.
            t = t.reshape(*t.shape, *(1,) * (data.ndim - t.ndim))
            t = t.to(torch.promote_types(t.dtype, torch.promote_types(noise.dtype, data.dtype)))
        elif not 0 <= t <= 1:
            raise ValueError(f"t: expected a number in [0, 1], got {t}")
        if self.noise_at == 0:
            return PathSample(((1 - t) * noise + t * data).to(data.dtype), data - noise)
        return PathSample((t * noise + (1 - t) * data).to(data.dtype), noise - data)

    def delayed(
        self, t: Float[Tensor, " batch"], delay: Int[Tensor, " batch"], *, steps: int
    ) -> tuple[Float[Tensor, "batch step"], Bool[Tensor, "batch step"]]:
        """Times of chunks whose first actions are known, for training with a clean prefix.

        Args:
            t: Flow time of each chunk.
            delay: Number of known actions of each chunk.
            steps: Actions of a chunk.

        Returns:
            The time of each action, that of data for the known ones, for `sample` and for the network; and where
                actions are free, for `flow_loss(valid_steps=...)`.

        Source:
            "Training-Time Action Conditioning for Efficient Real-Time Chunking", arXiv 2512.05964.

        Examples:
            >>> StraightPath(noise_at=1).delayed(torch.tensor([0.3, 0.8]), torch.tensor([0, 2]), steps=3)
            (tensor([[0.3000, 0.3000, 0.3000],
                    [0.0000, 0.0000, 0.8000]]), tensor([[ True,  True,  True],
                    [False, False,  True]]))
        """
        free = torch.arange(steps, device=t.device) >= delay[:, None].to(t.device)
        return torch.where(free, t[:, None], self.data_at), free

    def solve(
        self,
        velocity: Velocity,
        noise: Float[Tensor, "*shape"],
        *,
        steps: int = 10,
        start_time: float | None = None,
        times: Sequence[float] | Float[Tensor, " point *each"] | None = None,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay *rest"] | None = None,
        prefix_mode: Literal["noised", "clean"] = "noised",
        trajectory: bool = False,
    ) -> Float[Tensor, "*shape"] | Float[Tensor, " point *shape"]:
        r"""Integrate $dx/dt = v(x, t)$ from the noise end to the data end in equal steps, or along `times`.

        Step k starts at time k / `steps`, or at (`steps` - k) / `steps` if `noise_at` is 1. Times are computed from k,
        never accumulated, and passed as Python floats: no tensor controls the loop, so it unrolls into one graph under
        `torch.compile(fullgraph=True)` and can be captured as a CUDA graph.

        Real-time chunking: while this chunk is computed, the robot executes the first actions of the running one. Pass
        them as `prefix`; they come out exactly as given, and an empty prefix changes no bit. How the network sees them:

        - `"noised"`, for a network that was not trained for it: at every step they are on the straight line from their
          noise to their value, whatever the velocity says.
        - `"clean"`, for one that was (see `delayed`): they have their value from the first step on, and `velocity` gets
          the time of each action as a tensor (batch, step) in float32, that of data for the prefix.

        Args:
            velocity: Called as `velocity(x, t)`, once per step with `"euler"` and twice with the others. Returns a
                tensor of the shape of `x`, the derivative with respect to `t`.
            noise: State at the noise end, or at `start_time`, or at the first of `times`. It is never modified. Use
                float32 even if the network runs in bfloat16.
            steps: Number of equal steps.
            start_time: Time of the first step, to go on from a state inside the path. None: the noise end.
            times: Times of the states instead of equal steps, ordered, the last at the data end. Or a tensor (point,
                batch) or (point, batch, step) with times for each sample or action; its values are not checked, and
                `velocity` gets one row of it.
            method: Integration rule.
            prefix: First actions of the chunk, already decided.
            prefix_mode: How the network sees the prefix.
            trajectory: Return the states at all times, `noise` first, along a new first axis.

        Returns:
            State at the data end, in the dtype of `noise`; velocities are cast to it.

        Raises:
            ValueError: `steps` is below 1, times are not as described, the method or the prefix mode is unknown, the
                velocity has another shape than the state, the prefix is not the beginning of a state of this shape, or
                one of the three is not floating point.

        Source:
            InternVLA-A1 (Euler, 10 steps); "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339;
            for the clean prefix as in `delayed`.

        Examples:
            >>> path = StraightPath(noise_at=0)
            >>> path.solve(lambda x, t: torch.full_like(x, 2 * t), torch.zeros(1), steps=4, method="midpoint")
            tensor([1.])
            >>> path.solve(lambda x, t: torch.ones_like(x), torch.zeros(1, 3), steps=4, prefix=torch.full((1, 1), 7.0))
            tensor([[7., 1., 1.]])
            >>> path.solve(lambda x, t: torch.ones_like(x), torch.zeros(1), times=[0.0, 0.75, 1.0], trajectory=True)
            tensor([[0.0000],
                    [0.7500],
                    [1.0000]])
        """
        expect_floats(noise=noise, **({} if prefix is None else {"prefix": prefix}))
        if prefix_mode not in {"noised", "clean"}:
            raise ValueError(f"prefix_mode: expected 'noised' or 'clean', got {prefix_mode!r}")
        if isinstance(times, Tensor):
            if prefix is not None:
                raise ValueError("prefix: expected None beside times of each sample, which can hold it, got one")
            grid = steps_of_each(times, noise)
        elif times is not None:
            grid = steps_between(times, self.data_at)
        else:
            grid = equal_steps(float(self.noise_at) if start_time is None else start_time, self.data_at, steps)
        if times is not None and start_time is not None:
            raise ValueError(f"start_time: expected None beside times, whose first is the start, got {start_time}")
        clean = self.data_at if prefix_mode == "clean" else None
        states = integrate(velocity, noise, grid, method=method, prefix=prefix, clean=clean, trajectory=trajectory)
        return torch.stack(states) if trajectory else states[-1]

    def guided(
        self,
        velocity: Velocity,
        leftover: Float[Tensor, "batch known *rest"],
        *,
        delay: int,
        horizon: int | None = None,
        schedule: Falloff = "exp",
        limit: float = 5.0,
    ) -> Velocity:
        r"""A velocity that steers the chunk towards the rest of the previous one: soft real-time chunking.

        With flow time τ (0 at noise, 1 at data) and the data that the velocity predicts, $\hat a = x + (1-\tau) v$:

        $$v + \min\left(\beta, \frac{\tau^2 + (1-\tau)^2}{\tau (1-\tau)}\right)
        \frac{\partial \hat a}{\partial x}^{\!\top} W (a_\text{rest} - \hat a)$$

        for `noise_at` 0, and the same with opposite signs for 1. The weights W are 1 for the first `delay` actions,
        which will have been executed, fall to 0 at `horizon`, and are 0 from there on. For networks that were not
        trained for real-time chunking; the result need not begin with the actions exactly.

        Args:
            velocity: A velocity that is differentiable with respect to the state: without `torch.no_grad()` inside, and
                without writing into a buffer, such as a cache.
            leftover: What is left of the previous chunk, aligned with the beginning of the new one.
            delay: Actions that will have been executed when the new chunk is there.
            horizon: Number of actions that are steered. None: all of `leftover`.
            schedule: Weights between `delay` and `horizon`: `"exp"` as in the paper, `"linear"`, `"ones"`, `"zeros"`.
            limit: Largest strength β.

        Returns:
            A velocity for `solve`, called with a Python float as time. It costs a forward and a backward pass.

        Raises:
            ValueError: Not 0 <= `delay` <= `horizon` <= the length of `leftover`, an unknown schedule, a limit that is
                not positive, or a leftover that is not floating point or longer than the chunk.

        Source:
            "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339, equations 2 to 5.

        Examples:
            >>> path = StraightPath(noise_at=0)
            >>> still = path.guided(lambda x, t: torch.zeros_like(x), torch.ones(1, 2), delay=1)
            >>> path.solve(still, torch.zeros(1, 3)).round(decimals=2)
            tensor([[0.9900, 0.5000, 0.0000]])
        """
        expect_floats(leftover=leftover)
        weights = prefix_weights(leftover.shape[1], delay, horizon, schedule)
        if not limit > 0:
            raise ValueError(f"limit: expected a positive number, got {limit}")
        return corrected(velocity, leftover, weights, data_at=self.data_at, limit=limit)
