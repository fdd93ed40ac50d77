"""The straight path between noise and data, in one fixed clock."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch.solvers import Method, Velocity, expect_floats, integrate


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

    def sample(
        self, noise: Float[Tensor, "batch ..."], data: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"] | float
    ) -> PathSample:
        """Interpolate between noise and data, and give the velocity that a network should predict there.

        Args:
            noise: Sample at the noise end.
            data: Sample at the data end, of the same shape.
            t: Time in [0, 1]: one value per sample, or one Python float for the whole batch. The range of a tensor is
                not checked, since reading its values would make the host wait for the device.

        Returns:
            A named tuple of `point`, in the dtype of `data`, and `velocity`. The interpolation runs in the widest dtype
                among the arguments and is rounded once, so that a time close to 1 keeps its meaning in bfloat16.

        Raises:
            ValueError: The shapes differ, a tensor is not floating point, there is not one time per sample, or a Python
                float is outside [0, 1].
        """
        expect_floats(noise=noise, data=data)
        if noise.shape != data.shape:
            raise ValueError(f"noise: expected the shape of data {tuple(data.shape)}, got {tuple(noise.shape)}")
        if isinstance(t, Tensor):
            expect_floats(t=t)
            if t.shape != data.shape[:1]:
                raise ValueError(f"t: expected shape {tuple(data.shape[:1])}, got {tuple(t.shape)}")
            # einops cannot append a variable number of axes.
            t = t.reshape(-1, *(1,) * (data.ndim - 1))
            t = t.to(torch.promote_types(t.dtype, torch.promote_types(noise.dtype, data.dtype)))
        elif not 0 <= t <= 1:
            raise ValueError(f"t: expected a number in [0, 1], got {t}")
        if self.noise_at == 0:
            return PathSample(((1 - t) * noise + t * data).to(data.dtype), data - noise)
        return PathSample((t * noise + (1 - t) * data).to(data.dtype), noise - data)

    def solve(
        self,
        velocity: Velocity,
        noise: Float[Tensor, "*shape"],
        *,
        steps: int = 10,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay *rest"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        r"""Integrate $dx/dt = v(x, t)$ from the noise end to the data end in equal steps.

        Step k starts at time k / `steps`, or at (`steps` - k) / `steps` if `noise_at` is 1. Times are computed from k,
        never accumulated, and passed as Python floats: no tensor controls the loop, so it unrolls into one graph under
        `torch.compile(fullgraph=True)` and can be captured as a CUDA graph.

        Real-time chunking: while this chunk is computed, the robot executes the first actions of the running one. Pass
        them as `prefix`. They move on the straight line from their noise to their value, whatever the velocity says;
        the network sees them at every step, and they come out exactly as given. An empty prefix changes no bit.

        Args:
            velocity: Called as `velocity(x, t)`, once per step with `"euler"` and twice with the others. Returns a
                tensor of the shape of `x`, the derivative with respect to `t`.
            noise: State at the noise end. It is never modified. Use float32 even if the network runs in bfloat16.
            steps: Number of steps.
            method: Integration rule.
            prefix: First actions of the chunk, already decided.

        Returns:
            State at the data end, in the dtype of `noise`; velocities are cast to it.

        Raises:
            ValueError: `steps` is below 1, the method is unknown, the velocity has another shape than the state, the
                prefix is not the beginning of a state of this shape, or one of the three is not floating point.

        Source:
            InternVLA-A1 (Euler, 10 steps); "Real-Time Execution of Action Chunking Flow Policies", arXiv 2506.07339.

        Examples:
            >>> path = StraightPath(noise_at=0)
            >>> path.solve(lambda x, t: torch.full_like(x, 2 * t), torch.zeros(1), steps=4, method="midpoint")
            tensor([1.])
            >>> path.solve(lambda x, t: torch.ones_like(x), torch.zeros(1, 3), steps=4, prefix=torch.full((1, 1), 7.0))
            tensor([[7., 1., 1.]])
        """
        expect_floats(noise=noise, **({} if prefix is None else {"prefix": prefix}))
        backward = self.noise_at == 1
        return integrate(velocity, noise, steps=steps, method=method, backward=backward, prefix=prefix)
