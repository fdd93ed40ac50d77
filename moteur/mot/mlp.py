"""The feed-forward half of a layer."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Name -> (is there a gate?, the nonlinearity). "gelu" alone is the exact one, by the error function.
ACTIVATIONS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "swiglu": (True, F.silu),
    "geglu": (True, F.gelu),
    "geglu_tanh": (True, partial(F.gelu, approximate="tanh")),
    "gelu": (False, F.gelu),
    "gelu_tanh": (False, partial(F.gelu, approximate="tanh")),
}


class MLP(nn.Module):
    r"""Feed-forward network, gated or plain, without biases.

    With $\phi$ the nonlinearity: gated is `down(φ(gate(x)) * up(x))`, plain is `down(φ(up(x)))`.

    | activation     | form  | φ                                                |
    |----------------|-------|--------------------------------------------------|
    | `"swiglu"`     | gated | SiLU (Qwen, Llama)                               |
    | `"geglu"`      | gated | GELU, exact (error function)                     |
    | `"geglu_tanh"` | gated | GELU, tanh approximation (Gemma, PaliGemma, π0)  |
    | `"gelu"`       | plain | GELU, exact                                      |
    | `"gelu_tanh"`  | plain | GELU, tanh approximation                         |

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

    Raises:
        ValueError: for an activation that is not in the table.
    """

    def __init__(
        self,
        *,
        dim: int,
        mlp_dim: int,
        activation: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        gated, self.nonlinearity = ACTIVATIONS[activation]
        self.gate = nn.Linear(dim, mlp_dim, bias=False, device=device, dtype=dtype) if gated else None
        self.up = nn.Linear(dim, mlp_dim, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(mlp_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Apply the network to every token."""
        hidden = self.nonlinearity(self.up(x)) if self.gate is None else self.nonlinearity(self.gate(x)) * self.up(x)
        return self.down(hidden)
