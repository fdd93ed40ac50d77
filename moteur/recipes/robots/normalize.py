"""Normalisation of states and actions: one affine map a dimension, and its inverse."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from moteur.recipes.robots.statistics import FieldStatistics

Mode = Literal["mean_std", "min_max", "quantiles", "none"]
RELEASED_EPSILON = 1e-6


class Normalizer:
    r"""Maps values to $(x - \text{offset}) / \text{scale}$ and back.

    | mode | offset | scale |
    |---|---|---|
    | `mean_std` | mean | std + 1e-6 (as released) |
    | `min_max` | (min + max) / 2 | (max − min) / 2: the range becomes [−1, 1] |
    | `quantiles` | (q01 + q99) / 2 | (q99 − q01) / 2; values outside are not clipped |
    | `none` | 0 | 1 |

    A dimension whose smallest and largest value are the same has that value as its offset, so that it maps to 0 without
    rounding, and the scale `constant`. The released code divides by 1e-6 there. For actions that is right: what a
    policy predicts for a joint that never moved in the data is multiplied by 1e-6, and the joint holds still. Of a
    state it would turn the last bit of a sensor into a value of one. Where values differ and the spread is still below
    1e-6, the scale is 1. Both directions compute in float64 and invert each other to rounding.

    Args:
        statistics: What the values look like.
        mode: Which map.
        constant: Scale of dimensions that have one value only.

    Raises:
        ValueError: The mode is not one of these, or needs quantiles, and the statistics have none.

    Example:
        >>> statistics = FieldStatistics(3, mean=(1.0, 5.0), std=(2.0, 0.0), min=(-1.0, 5.0), max=(3.0, 5.0))
        >>> normalizer = Normalizer(statistics, mode="min_max")
        >>> normalizer(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """

    def __init__(self, statistics: FieldStatistics, *, mode: Mode = "mean_std", constant: float = 1.0) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
        offset = torch.zeros(statistics.dims, dtype=torch.float64)
        scale = torch.ones_like(offset)
        if mode == "mean_std":
            offset, spread = _tensor(statistics.mean), _tensor(statistics.std)
            scale = spread + RELEASED_EPSILON
        elif mode == "none":
            spread = scale
        else:
            low, high = _range(statistics, mode)
            offset, spread = (low + high) / 2, high - low
            scale = spread / 2
        # The mean of equal numbers is rounded, and so their deviation is not quite 0.
        least = _tensor(statistics.min)
        equal = (least == _tensor(statistics.max)) & (mode != "none")
        self.offset: Float64[Tensor, " dim"] = torch.where(equal, least, offset)
        self.scale: Float64[Tensor, " dim"] = torch.where(
            equal, constant, torch.where(spread < RELEASED_EPSILON, 1.0, scale)
        )

    def __call__(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Normalise, in float64 on the values' device."""
        return (values.double() - self.offset.to(values.device)) / self.scale.to(values.device)

    def inverse(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Undo it, in float64 on the values' device."""
        return values.double() * self.scale.to(values.device) + self.offset.to(values.device)


def _range(statistics: FieldStatistics, mode: Mode) -> tuple[Tensor, Tensor]:
    if mode == "min_max":
        return _tensor(statistics.min), _tensor(statistics.max)
    if statistics.q01 is None or statistics.q99 is None:
        raise ValueError(f"mode {mode!r} needs quantiles, and these statistics have none")
    return _tensor(statistics.q01), _tensor(statistics.q99)


def _tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
