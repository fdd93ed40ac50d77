"""Linear maps in 8-bit floats, for chips that multiply them twice as fast as bfloat16."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moteur.runtime.linear import Gelu

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_CAPABILITY = (8, 9)


class Float8Linear(nn.Module):
    """A map whose weight rows and input rows are rounded to float8 (e4m3), each with a scale of its own.

    The weight is rounded once, the input at every call; products are summed in float32 and given in bfloat16.
    About four of a hundred parts of a result are lost: an option where halving the weights read is worth it.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None) -> None:
        super().__init__()
        rounded, scale = _rounded(weight.float())
        self.register_buffer("weight", rounded, persistent=False)
        self.register_buffer("scale", scale.mT, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """The map itself."""
        rounded, scale = _rounded(x.flatten(0, -2).float())
        # Rows scaled one by one are only given in bfloat16; the operator has no public name.
        y = torch._scaled_mm(rounded, self.weight.mT, scale, self.scale, out_dtype=torch.bfloat16)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def plus(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """The map, added to `other`."""
        return self.forward(x) + other

    def gelu(self, x: Float[Tensor, "*rest inner"], kind: Gelu) -> Float[Tensor, "*rest outer"]:
        """GELU of the map."""
        return F.gelu(self.forward(x), approximate=kind)


def check_float8(device: torch.device) -> None:
    """Refuse a device without 8-bit float arithmetic.

    Raises:
        ValueError: On anything but a CUDA device of compute capability 8.9 or newer.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < _CAPABILITY:
        found = device.type if capability is None else f"capability {capability[0]}.{capability[1]}"
        raise ValueError(f"float8: expected a CUDA device of capability 8.9 or newer, got {found}")


def _rounded(values: Float[Tensor, "row inner"]) -> tuple[Tensor, Float[Tensor, "row 1"]]:
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (values / scale).to(torch.float8_e4m3fn), scale
