"""Beta-distributed numbers from a caller's generator, which `torch.distributions` does not take."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def draw_beta(
    alpha: float, beta: float, size: torch.Size, *, generator: torch.Generator | None, device: torch.device
) -> Float64[Tensor, "..."]:
    """Draws of Beta(alpha, beta) in float64; rounding may put one on 0 or 1.

    Inverse distribution function where a shape is 1: F(x) = x^alpha, or 1 - (1 - x)^beta. Otherwise A / (A + B) of two
    Gamma variables, taken as the logistic function of log A - log B because A itself underflows for small shapes.
    """
    if beta == 1:
        return _unit(size, generator, device) ** (1 / alpha)
    if alpha == 1:
        # 1 - U^(1/beta), written so that values near 0 keep their digits.
        return -torch.expm1(_unit(size, generator, device).log() / beta)
    first = _log_gamma(alpha, size, generator, device)
    second = _log_gamma(beta, size, generator, device)
    return torch.sigmoid(first - second)


def _log_gamma(shape: float, size: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Logarithms of Gamma(shape, 1) draws.

    Marsaglia and Tsang, "A simple method for generating gamma variables", 2000, for shape + 1, accepted in more than
    95 % of rounds; then Gamma(shape) = Gamma(shape + 1) U^(1 / shape), their section on small shapes.
    """
    d = shape + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    accepted = torch.zeros(size, dtype=torch.bool, device=device)
    result = torch.zeros(size, dtype=torch.float64, device=device)
    while not bool(accepted.all()):
        normal = torch.randn(size, dtype=torch.float64, generator=generator, device=device)
        log_v = 3 * torch.log((1 + c * normal).clamp(min=0))
        bound = 0.5 * normal.square() + d - d * log_v.exp() + d * log_v
        good = _unit(size, generator, device).log() < bound
        result = torch.where(good & ~accepted, math.log(d) + log_v, result)
        accepted = accepted | good
    return result + _unit(size, generator, device).log() / shape


def _unit(size: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform on (0, 1]: a logarithm of 0 cannot occur."""
    return 1 - torch.rand(size, dtype=torch.float64, generator=generator, device=device)
