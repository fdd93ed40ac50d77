"""A time written as sines and cosines, for a network to read."""

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from moteur.flowmatch.precision import float64_device


def time_features(
    time: Float[Tensor, " batch"], *, dim: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float32[Tensor, "batch {dim}"]:
    r"""Sinusoidal features of a time: `dim` / 2 sines, then as many cosines.

    $$\sin\frac{2\pi t}{p_i},\quad \cos\frac{2\pi t}{p_i},\qquad
    p_i = p_{\min}\left(\frac{p_{\max}}{p_{\min}}\right)^{i/(n-1)},\quad i = 0,\dots,n-1,\quad n = \text{dim}/2$$

    The angles reach 2 pi / 4e-3 = 1,571 rad, where float32 has lost five digits: they are computed in float64 and only
    the features are rounded. On a backend without float64 (MPS) this happens on the CPU, which makes the caller wait.

    Args:
        time: One time for each sample, in whichever clock the network was trained with.
        dim: Number of features, even.
        min_period: Shortest period $p_{\min}$, in units of `time`.
        max_period: Longest period $p_{\max}$.

    Returns:
        Float32 features, whatever the dtype of `time`.

    Raises:
        ValueError: An odd or non-positive `dim`, periods that are not 0 < `min_period` < `max_period`.

    Source:
        What the released InternVLA-A1 computes; the scheme is that of Vaswani et al., 2017.

    Examples:
        >>> time_features(torch.tensor([0.0, 1.0]), dim=4, min_period=1.0, max_period=4.0).round(decimals=4).abs()
        tensor([[0., 0., 1., 1.],
                [0., 1., 1., 0.]])
    """
    check_features(dim=dim, min_period=min_period, max_period=max_period)
    precise = time.to(float64_device(time.device)).to(torch.float64)
    fraction = torch.linspace(0, 1, dim // 2, dtype=torch.float64, device=precise.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = 2 * math.pi * precise[:, None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(torch.float32).to(time.device)


def check_features(*, dim: int, min_period: float, max_period: float) -> None:
    """Refuse sizes that `time_features` cannot serve."""
    if dim < 1 or dim % 2:
        raise ValueError(f"dim: expected a positive even number (sines and cosines in pairs), got {dim}")
    if not 0 < min_period < max_period < math.inf:
        raise ValueError(
            f"min_period, max_period: expected 0 < min_period < max_period, both finite, "
            f"got min_period={min_period}, max_period={max_period}"
        )
