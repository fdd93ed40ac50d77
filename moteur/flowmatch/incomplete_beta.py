"""The regularised incomplete beta function, which torch does not have."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

_ROUNDS = 2_000  # it takes O(sqrt(max(a, b))) rounds: a few hundred at shapes of 1e4
_TINY = 1e-300
_SETTLED = 1e-15


def incomplete_beta(a: float, b: float, x: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    r"""Distribution function of Beta(a, b) at `x` in [0, 1].

    $$I_x(a, b) = \frac{x^a (1-x)^b}{a\,B(a,b)}\cdot
    \cfrac{1}{1+\cfrac{d_1}{1+\cfrac{d_2}{1+\dots}}}$$

    The continued fraction (NIST Digital Library of Mathematical Functions, 8.17.22) converges fast for
    x < (a + 1) / (a + b + 2); beyond it, $I_x(a,b) = 1 - I_{1-x}(b,a)$ is used. Closed forms where a shape is 1.
    """
    if b == 1:
        return x**a
    if a == 1:
        return -torch.expm1(b * torch.log1p(-x))
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    swap = x > (a + 1) / (a + b + 2)
    near = torch.where(swap, 1 - x, x)
    first = torch.where(swap, torch.full_like(x, b), torch.full_like(x, a))
    second = a + b - first
    front = torch.exp(first * near.log() + second * torch.log1p(-near) - log_beta) / first
    value = front * _fraction(first, second, near)
    return torch.where(swap, 1 - value, value)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The continued fraction, front to back (modified Lentz), until no element moves any more."""
    value = torch.ones_like(x)
    ratio = torch.ones_like(x)
    inverse = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = inverse
    for m in range(1, _ROUNDS):
        for coefficient in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            inverse = 1 / _away_from_zero(1 + coefficient * inverse)
            ratio = _away_from_zero(1 + coefficient / ratio)
            value = value * inverse * ratio
        if bool(((inverse * ratio - 1).abs() < _SETTLED).all()):
            break
    return value


def _away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _TINY, _TINY, x)
