"""Guidance of a velocity towards the rest of the previous chunk: soft real-time chunking."""

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch.solvers import Velocity

Falloff = Literal["exp", "linear", "ones", "zeros"]
"""How the weights of guidance fall from the actions that will have been executed to those that are free."""


_Pulled = tuple[Tensor, Callable[[Tensor], tuple[Tensor]], Tensor]


def prefix_weights(known: int, delay: int, horizon: int | None, schedule: Falloff) -> list[float]:
    """Weight of each known action: 1 before `delay`, 0 from `horizon` on; see `StraightPath.guided`."""
    horizon = known if horizon is None else horizon
    if not 0 <= delay <= horizon <= known:
        raise ValueError(
            f"delay, horizon: expected 0 <= delay <= horizon <= {known} known actions, "
            f"got delay={delay}, horizon={horizon}"
        )
    fall = [(horizon - index) / (horizon - delay + 1) for index in range(delay, horizon)]
    between = {
        "exp": [share * math.expm1(share) / math.expm1(1) for share in fall],
        "linear": fall,
        "ones": [1.0] * len(fall),
        "zeros": [0.0] * len(fall),
    }
    if schedule not in between:
        raise ValueError(f"schedule: expected one of {', '.join(map(repr, between))}, got {schedule!r}")
    return [1.0] * delay + between[schedule] + [0.0] * (known - horizon)


def corrected(
    velocity: Velocity,
    leftover: Float[Tensor, "batch known *rest"],
    weights: list[float],
    *,
    data_at: float,
    limit: float,
) -> Velocity:
    """A velocity with the gradient of the weighted error of the data that it predicts; see `StraightPath.guided`."""

    def guided(x: Tensor, time: float) -> Tensor:
        known = leftover.shape[1]
        if leftover.shape != x[:, :known].shape:
            raise ValueError(
                f"leftover: expected the first steps of a state of shape {tuple(x.shape)}, got {tuple(leftover.shape)}"
            )
        remaining = data_at - time  # signed: negative where time runs from 1 to 0

        def predicted(x: Tensor) -> tuple[Tensor, Tensor]:
            value = velocity(x, time).to(x.dtype)
            return x + remaining * value, value

        data, pull_back, value = cast("_Pulled", torch.func.vjp(predicted, x, has_aux=True))
        weight = x.new_tensor(weights).reshape(-1, *[1] * (x.ndim - 2))
        error = weight * (leftover.to(x.dtype) - data[:, :known])
        (gradient,) = pull_back(torch.cat([error, torch.zeros_like(x[:, known:])], dim=1))
        left = abs(remaining)
        spread = left * (1 - left)
        strength = min(limit, (left**2 + (1 - left) ** 2) / spread) if spread > 0 else limit
        return value + math.copysign(strength, data_at - 0.5) * gradient

    return guided
