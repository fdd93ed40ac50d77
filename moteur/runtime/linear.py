"""Linear maps ready for inference: the same function by whichever kernel is fastest, with what follows fused in."""

from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Gelu = Literal["none", "tanh"]
"""Which GELU: by the error function, or the tanh approximation."""


@runtime_checkable
class Linear(Protocol):
    """$y = xW^T + b$, and the same with one elementwise step after it."""

    def __call__(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """The map itself."""
        ...

    def plus(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """The map, added to `other`."""
        ...

    def gelu(self, x: Float[Tensor, "*rest inner"], kind: Gelu) -> Float[Tensor, "*rest outer"]:
        """GELU of the map."""
        ...


class AtenLinear(nn.Module):
    """`torch.nn.functional.linear`: works for every device and dtype."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """The map itself."""
        return F.linear(x, self.weight, self.bias)

    def plus(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """The map, added to `other`: one matrix product that starts from it."""
        if self.bias is not None:
            return F.linear(x, self.weight, self.bias) + other
        return torch.addmm(other.flatten(0, -2), x.flatten(0, -2), self.weight.mT).view(other.shape)

    def gelu(self, x: Float[Tensor, "*rest inner"], kind: Gelu) -> Float[Tensor, "*rest outer"]:
        """GELU of the map."""
        return F.gelu(self.forward(x), approximate=kind)


class OneDnnLinear(nn.Module):
    """oneDNN's inner product over weights packed once, with the elementwise step done while the result is in cache.

    The operators belong to PyTorch's compiler and are not public; `available` says whether this PyTorch has them. What
    they compute is held to `AtenLinear` by tests.
    """

    def __init__(
        self, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None, *, rows: int
    ) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)  # noqa: SLF001  see above
        self.bias = bias

    @staticmethod
    def available(device: torch.device, dtype: torch.dtype) -> bool:
        """Whether these operators exist here, for this device and dtype."""
        names = ("_reorder_linear_weight", "_linear_pointwise")
        if device.type != "cpu" or dtype not in {torch.float32, torch.bfloat16}:
            return False
        return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """The map itself."""
        return self._run(x, "none", [], "")

    def plus(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """The map, added to `other`."""
        return self._with(x, other, "add")

    def times(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """The map, multiplied by `other`."""
        return self._with(x, other, "mul")

    def gelu(self, x: Float[Tensor, "*rest inner"], kind: Gelu) -> Float[Tensor, "*rest outer"]:
        """GELU of the map."""
        return self._run(x, "gelu", [], kind)

    def silu(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """SiLU of the map."""
        return self._run(x, "swish", [], "")

    def _run(self, x: Tensor, step: str, numbers: list[float], kind: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, step, numbers, kind)  # noqa: SLF001

    def _with(self, x: Tensor, other: Tensor, step: str) -> Tensor:
        # The overload by name: in looking for it PyTorch renders the arguments for a message that nobody reads.
        run = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
        return run(x, other.contiguous(), self.packed, self.bias, step)


class JoinedGate(nn.Module):
    """A gated MLP's first half, `silu(gate x) * up x`, as one matrix product over both weights."""

    def __init__(self, joined: Linear) -> None:
        super().__init__()
        self.joined = joined

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest hidden"]:
        """What `down` reads."""
        gate, up = self.joined(x).chunk(2, dim=-1)
        return F.silu(gate) * up


class PackedGate(nn.Module):
    """The same as two inner products, SiLU done inside the first, the multiplication inside the second."""

    def __init__(self, gate: OneDnnLinear, up: OneDnnLinear) -> None:
        super().__init__()
        self.gate, self.up = gate, up

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest hidden"]:
        """What `down` reads."""
        return self.up.times(x, self.gate.silu(x))
