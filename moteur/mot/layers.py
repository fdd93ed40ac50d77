"""The parts of an expert's layer: norms, attention projections, feed-forward network."""

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot.rotary import Rotation, rotate

NormKind = Literal["rms", "rms_unit_offset", "layer"]
Activation = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh"]

Modulation: TypeAlias = Float[Tensor, "#batch #seq modulated"]
"""Scales, shifts and, where there are any, gates, side by side: of `2 * dim` or `3 * dim` features."""

# Whether there is a gate, and the nonlinearity. "gelu" alone is the exact one, by the error function.
ACTIVATIONS: Mapping[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "swiglu": (True, F.silu),
    "geglu": (True, F.gelu),
    "geglu_tanh": (True, partial(F.gelu, approximate="tanh")),
    "gelu": (False, F.gelu),
    "gelu_tanh": (False, partial(F.gelu, approximate="tanh")),
}


class RMSNorm(nn.Module):
    r"""Root-mean-square norm over the last axis.

    $$ y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \, g $$

    The gain $g$ is `weight`, or `1 + weight` with `unit_offset` (Gemma stores its weights around zero). Half-precision
    input is widened to float32, normalised and scaled there, and rounded once at the end.

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


class ConditionedNorm(nn.Module):
    r"""Norm whose gain and offset come from a condition, and with them a gate for the residual behind it.

    $$ y = n(x) \, (1 + s) + b, \qquad [s, b, g] = W c + w $$

    $n$ is a root-mean-square or a layer norm without weights, $c$ the condition, and `modulation` the linear map
    $W, w$, whose rows are scales $s$, shifts $b$ and, with `gate`, gates $g$: what attention or the MLP computes is
    multiplied by $g$ before it is added to the tokens. The map starts at zero: gain one, no offset, and nothing added
    where there is a gate. Precision as in `RMSNorm`.

    Args:
        dim: width of the tokens.
        condition: width of the condition.
        gate: whether there are gates.
        kind: `"layer"` for a layer norm; a root-mean-square norm otherwise.
        eps: added under the square root.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748 (adaLN-Zero); Physical
    Intelligence, "π0.5", arXiv 2504.16054 (adaptive RMS norm).
    """

    def __init__(
        self,
        dim: int,
        *,
        condition: int,
        gate: bool,
        kind: NormKind,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.centred = kind == "layer"
        self.modulation = nn.Linear(condition, (3 if gate else 2) * dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the map of the condition to zero."""
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)

    def modulate(
        self, condition: Float[Tensor, "batch condition"] | Float[Tensor, "batch seq condition"]
    ) -> Modulation:
        """Scales, shifts and gates side by side, for each token or, with a length of 1, for all tokens of a sample."""
        per_token = condition[:, None] if condition.ndim == 2 else condition  # noqa: PLR2004
        # Norms may be wider than everything else. What was put in place of the map may have no weight.
        return self.modulation(per_token.to(getattr(self.modulation, "weight", per_token).dtype))

    def forward(self, x: Float[Tensor, "batch seq dim"], modulation: Modulation) -> Float[Tensor, "batch seq dim"]:
        """Normalise the last axis of `x` with what `modulate` gave; the result has the dtype of `x`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        size = x.shape[-1:]
        scale, shift = modulation[..., : 2 * size[0]].to(wide).chunk(2, dim=-1)
        normalise = F.layer_norm if self.centred else F.rms_norm
        return torch.addcmul(shift, normalise(x.to(wide), size, eps=self.eps), 1 + scale).to(x.dtype)


def residual(
    x: Float[Tensor, "batch seq dim"], update: Float[Tensor, "batch seq dim"], modulation: Modulation | None
) -> Float[Tensor, "batch seq dim"]:
    """Add what a sublayer computed, times the gates that follow scales and shifts, if there are any."""
    gated_from = 2 * x.shape[-1]
    if modulation is None or modulation.shape[-1] == gated_from:
        return x + update
    return torch.addcmul(x, update.to(x.dtype), modulation[..., gated_from:].to(x.dtype))


Norm: TypeAlias = RMSNorm | LayerNorm


def normalise(
    norm: nn.Module, x: Float[Tensor, "batch seq dim"], modulation: Modulation | None
) -> Float[Tensor, "batch seq dim"]:
    """Apply a norm, with its modulation if it is a conditioned one."""
    return norm(x) if modulation is None else norm(x, modulation)


def make_norm(
    kind: NormKind,
    dim: int,
    *,
    eps: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Norm:
    """Build a norm by name."""
    if kind == "layer":
        return LayerNorm(dim, eps=eps, device=device, dtype=dtype)
    if kind in {"rms", "rms_unit_offset"}:
        return RMSNorm(dim, eps=eps, unit_offset=kind == "rms_unit_offset", device=device, dtype=dtype)
    raise ValueError(f"norm: expected one of {', '.join(get_args(NormKind))}, got {kind!r}")


class Projections(nn.Module):
    """Attention projections of one expert's layer: query, key and value in one linear map, and the output map.

    Rows of `qkv` are queries, then keys, then values. Queries and keys may be normalised over each head. A state dict
    with separate `query`, `key` and `value` loads too: its tensors are joined. With `output_gate` there is a map `gate`
    as well: the sigmoid of what it gives multiplies the attended values, feature by feature.

    Heads stay on the third axis, (batch, seq, heads, head_dim), so that streams are joined along `seq` and rotated
    without a copy.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bias: bool,
        output_gate: bool,
        query_norm: Norm | None,
        key_norm: Norm | None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        joined = (heads + 2 * kv_heads) * head_dim
        self.qkv = nn.Linear(dim, joined, bias=bias, device=device, dtype=dtype)
        self.output = nn.Linear(heads * head_dim, dim, bias=False, device=device, dtype=dtype)
        self.gate = nn.Linear(dim, heads * head_dim, bias=bias, device=device, dtype=dtype) if output_gate else None
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.register_load_state_dict_pre_hook(partial(_join_stored, parts=("query", "key", "value"), joined="qkv"))

    def forward(
        self, x: Float[Tensor, "batch seq dim"], rotation: Rotation | None = None
    ) -> tuple[
        Float[Tensor, "batch seq heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Float[Tensor, "batch seq gated"] | None,
    ]:
        """Queries, keys, values and logits of the output gate; queries and keys are rotated together."""
        # Plain torch reshapes here and in `MoT`: tracing through einops made `torch.compile` four times slower.
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        turned, value = heads.split_with_sizes([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turned.split_with_sizes([self.heads, self.kv_heads], dim=2)
            turned = torch.cat([self.query_norm(query), self.key_norm(key)], dim=2)
        if rotation is not None:
            turned = rotate(turned, rotation)
        query, key = turned.split_with_sizes([self.heads, self.kv_heads], dim=2)
        return query, key, value, None if self.gate is None else self.gate(x)


class MLP(nn.Module):
    r"""Feed-forward network, gated or plain, without biases.

    With $\phi$ the nonlinearity, gated is `down(φ(gate) * up)`, where one linear map `gate_up` gives both factors, gate
    first; plain is `down(φ(up(x)))`. A state dict with separate `gate` and `up` loads too.

    | activation     | form  | φ                                                |
    |----------------|-------|--------------------------------------------------|
    | `"swiglu"`     | gated | SiLU (Qwen, Llama)                               |
    | `"geglu"`      | gated | GELU, exact (error function)                     |
    | `"geglu_tanh"` | gated | GELU, tanh approximation (Gemma, PaliGemma, π0)  |
    | `"gelu"`       | plain | GELU, exact                                      |
    | `"gelu_tanh"`  | plain | GELU, tanh approximation                         |

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

    Raises:
        ValueError: If the activation is not in the table.
    """

    def __init__(
        self,
        *,
        dim: int,
        mlp_dim: int,
        activation: Activation,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.gated, self.nonlinearity = ACTIVATIONS[activation]
        if self.gated:
            self.gate_up = nn.Linear(dim, 2 * mlp_dim, bias=False, device=device, dtype=dtype)
            self.register_load_state_dict_pre_hook(partial(_join_stored, parts=("gate", "up"), joined="gate_up"))
        else:
            self.up = nn.Linear(dim, mlp_dim, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(mlp_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Apply the network to every token."""
        if not self.gated:
            return self.down(self.nonlinearity(self.up(x)))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.nonlinearity(gate) * up)


def _join_stored(  # what torch hands to a load hook
    module: nn.Module,  # noqa: ARG001
    state: MutableMapping[str, Tensor],
    prefix: str,
    *_: object,
    parts: tuple[str, ...],
    joined: str,
) -> None:
    """Join the rows of linear maps that a state dict stores apart."""
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in parts]
        if all(name in state for name in names):
            state[f"{prefix}{joined}.{kind}"] = torch.cat([state.pop(name) for name in names])
