"""The norms an expert may use, computed in float32 or wider whatever the precision of the tokens."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NormKind = Literal["rms", "rms_unit_offset", "layer"]


class RMSNorm(nn.Module):
    r"""Root-mean-square norm over the last axis.

    $$ y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \, g $$

    with the gain $g$ equal to `weight`, or to `1 + weight` when `unit_offset` (the convention of Gemma, whose
    weights are stored around zero). A half-precision input is widened to float32, scaled there by the weight in
    float32, and rounded once at the end: a float32 `weight` in a bfloat16 model keeps its precision.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float,
        unit_offset: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.constant_(self.weight, 0.0 if self.unit_offset else 1.0)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Normalise the last axis of `x`; the result has the dtype of `x`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        gain = self.weight.to(wide)
        if self.unit_offset:
            gain = 1 + gain
        return F.rms_norm(x.to(wide), gain.shape, gain, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    r"""Layer norm over the last axis, with weight and bias.

    $$ y = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \epsilon}} \, g + b $$

    Precision as in `RMSNorm`. Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.
    """

    def __init__(
        self, dim: int, *, eps: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to one and the bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Normalise the last axis of `x`; the result has the dtype of `x`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(wide)
        return F.layer_norm(x.to(wide), weight.shape, weight, self.bias.to(wide), self.eps).to(x.dtype)


def make_norm(
    kind: NormKind | str,
    dim: int,
    *,
    eps: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RMSNorm | LayerNorm:
    """Build the norm called `kind`; `ValueError` lists the names there are."""
    if kind == "layer":
        return LayerNorm(dim, eps=eps, device=device, dtype=dtype)
    if kind in {"rms", "rms_unit_offset"}:
        return RMSNorm(dim, eps=eps, unit_offset=kind == "rms_unit_offset", device=device, dtype=dtype)
    raise ValueError(f"norm: expected one of {', '.join(get_args(NormKind))}, got {kind!r}")
