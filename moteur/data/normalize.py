"""Normalisation of states and actions: one affine map for each dimension, and its inverse."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from moteur.data.statistics import FieldStatistics

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

    A dimension whose spread is below 1e-6 has a scale of 1: the released code divides by 1e-6 there, which turns the
    last bit of a sensor into a value of one. Actions do want that (`hold`): a prediction for a joint that stood still
    in the data is multiplied by 1e-6, and the joint holds still. Where the smallest and the largest value are equal,
    the offset is that value, so that it maps to exactly 0. Where `quantiles` has q01 equal to q99 while other values
    occur, it uses the range from minimum to maximum. Both directions compute in float64 and invert each other to
    rounding.

    Args:
        statistics: Statistics of the values.
        mode: Name of the map.
        hold: Scale dimensions of a spread below 1e-6 by 1e-6, as released. For actions.

    Raises:
        ValueError: The mode is not one of these, or needs quantiles that the statistics do not have.

    Examples:
        >>> statistics = FieldStatistics(3, mean=(1.0, 5.0), std=(2.0, 0.0), min=(-1.0, 5.0), max=(3.0, 5.0))
        >>> normalizer = Normalizer(statistics, mode="min_max")
        >>> normalizer(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]], dtype=torch.float64)
    """

    def __init__(self, statistics: FieldStatistics, *, mode: Mode = "mean_std", hold: bool = False) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
        least, most = _tensor(statistics.min), _tensor(statistics.max)
        if mode == "none":
            offset, scale = torch.zeros_like(least), torch.ones_like(least)
        elif mode == "mean_std":
            # The mean of equal numbers is rounded, and so their deviation is not quite 0.
            spread = torch.where(least == most, 0, _tensor(statistics.std))
            offset, scale = _tensor(statistics.mean), _kept(spread, spread + RELEASED_EPSILON, hold=hold)
        else:
            low, high = _range(statistics, mode)
            spread = torch.where(high - low < RELEASED_EPSILON, most - least, high - low)
            offset, scale = (low + high) / 2, _kept(spread, spread / 2, hold=hold)
        if mode != "none":
            offset = torch.where(least == most, least, offset)
        self.offset: Float64[Tensor, " dim"] = offset
        self.scale: Float64[Tensor, " dim"] = scale

    def __call__(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Normalise values, in float64 on their device."""
        return (values.double() - self.offset.to(values.device)) / self.scale.to(values.device)

    def inverse(self, values: Float[Tensor, "*lead dim"]) -> Float64[Tensor, "*lead dim"]:
        """Undo the normalisation, in float64 on the values' device."""
        return values.double() * self.scale.to(values.device) + self.offset.to(values.device)


def _kept(spread: Tensor, scale: Tensor, *, hold: bool) -> Tensor:
    return torch.where(spread < RELEASED_EPSILON, scale.clamp(min=RELEASED_EPSILON) if hold else 1.0, scale)


def _range(statistics: FieldStatistics, mode: Mode) -> tuple[Tensor, Tensor]:
    if mode == "min_max":
        return _tensor(statistics.min), _tensor(statistics.max)
    if statistics.q01 is None or statistics.q99 is None:
        raise ValueError(f"statistics: expected quantiles for the mode {mode!r}, got none")
    return _tensor(statistics.q01), _tensor(statistics.q99)


def _tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
