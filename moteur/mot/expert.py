"""One expert: the weights of one stream."""

from functools import partial
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot.layers import (
    MLP,
    Activation,
    ConditionedNorm,
    LayerNorm,
    Modulation,
    Norm,
    NormKind,
    Projections,
    RMSNorm,
    make_norm,
    normalise,
    residual,
)
from moteur.mot.rotary import Rotation

Carried: TypeAlias = tuple[Float[Tensor, "batch seq gated"] | None, Modulation | None, Modulation | None]
"""What a layer carries past attention: logits of the output gate and modulations of its two norms, if it has them."""

TABLE_AXES = 4
"""A table of modulations has four axes, (norms, batch, seq, modulated); a condition has two or three."""


class ExpertLayer(nn.Module):
    """One expert's part of one layer, held as parts."""

    def __init__(
        self,
        *,
        attention_norm: Norm | ConditionedNorm,
        attention: Projections,
        mlp_norm: Norm | ConditionedNorm,
        mlp: MLP,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def project(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotation: Rotation | None,
        condition: Float[Tensor, "..."] | None = None,
    ) -> tuple[
        Float[Tensor, "batch seq heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Carried,
    ]:
        """Queries and keys, rotated, and values of tokens; and what `finish` needs."""
        first, second = modulations(condition, self.attention_norm, self.mlp_norm)
        query, key, value, gate = self.attention(normalise(self.attention_norm, x, first), rotation)
        return query, key, value, (gate, first, second)

    def finish(
        self,
        x: Float[Tensor, "batch seq dim"],
        attended: Float[Tensor, "batch seq heads head_dim"],
        carried: Carried,
    ) -> Float[Tensor, "batch seq dim"]:
        """Add the output of attention, then that of the MLP."""
        gate, first, second = carried
        attended = attended.flatten(-2)
        x = residual(x, self.attention.output(attended if gate is None else attended * gate.sigmoid()), first)
        return residual(x, self.mlp(normalise(self.mlp_norm, x, second)), second)


class Expert(nn.Module):
    r"""The weights of one stream: `layers` and a final `norm`. A `MoT` walks it beside its fellows.

    A layer is pre-norm, with $\mathrm{attend}$ the attention over all streams:

    $$ x \leftarrow x + O \, \mathrm{attend}(Q n_1(x), K n_1(x), V n_1(x)) $$
    $$ x \leftarrow x + \mathrm{MLP}(n_2(x)) $$

    Args:
        dim: width of the stream's tokens; each expert may have its own.
        depth: number of layers; experts of one `MoT` share it, and the three sizes of heads below.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        head_dim: size of a head; `heads * head_dim` need not equal `dim`.
        mlp_dim: hidden width of the MLP.
        activation: `"swiglu"`, `"geglu"`, `"geglu_tanh"`, `"gelu"` or `"gelu_tanh"`, see `MLP`.
        norm: `"rms"`, `"rms_unit_offset"` (gain `1 + weight`) or `"layer"`.
        eps: added under the square root of every norm of this expert.
        qk_norm: whether queries and keys are normalised over `head_dim`, by the same kind of norm, before rotation.
        qkv_bias: whether the query, key and value maps have a bias. No other linear map has one, but those of a
            condition.
        output_gate: whether the attended values are multiplied, feature by feature and before the output map, by the
            sigmoid of one more linear map of the normalised tokens, with a bias if the query map has one (Qiu et al.,
            arXiv 2505.06708; Qwen3-Next).
        condition: width of the condition that gives `attention_norm`, `mlp_norm` and the final `norm` their gains and
            offsets, see `ConditionedNorm`; None for gains that are learned. With `"rms_unit_offset"` it is what it is
            with `"rms"`.
        residual_gate: whether the condition gives gates as well, by which the outputs of attention and MLP are
            multiplied before they are added. The final norm computes one too, which nothing uses.
        device: device of the parameters; `"meta"` allocates nothing.
        dtype: dtype of the parameters.

    Weights are drawn from torch's global generator: linear maps normal with standard deviation 0.02, biases zero,
    norm gains one, and the maps of a condition zero.

    Raises:
        ValueError: for `kv_heads` that does not divide `heads`, an unknown activation or norm, a residual gate without
            a condition.

    Examples:
        >>> expert = Expert(dim=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=32)
        >>> expert.layers[0].attention.qkv.weight.shape  # 4 query heads, 2 key heads, 2 value heads
        torch.Size([64, 16])
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        mlp_dim: int,
        activation: Activation = "swiglu",
        norm: NormKind = "rms",
        eps: float = 1e-6,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        output_gate: bool = False,
        condition: int | None = None,
        residual_gate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={heads}, got {kv_heads}")
        if residual_gate and condition is None:
            raise ValueError("residual_gate: expected False without a condition, got True")
        self.dim, self.depth, self.heads, self.kv_heads, self.head_dim = dim, depth, heads, kv_heads, head_dim
        self.condition, self.residual_gate = condition, residual_gate
        new_norm = partial(make_norm, norm, eps=eps, device=device, dtype=dtype)
        stream_norm = new_norm
        if condition is not None:
            stream_norm = partial(
                ConditionedNorm, kind=norm, condition=condition, gate=residual_gate, eps=eps, device=device, dtype=dtype
            )
        self.layers = nn.ModuleList(
            ExpertLayer(
                attention_norm=stream_norm(dim),
                attention=Projections(
                    dim=dim,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=head_dim,
                    bias=qkv_bias,
                    output_gate=output_gate,
                    query_norm=new_norm(head_dim) if qk_norm else None,
                    key_norm=new_norm(head_dim) if qk_norm else None,
                    device=device,
                    dtype=dtype,
                ),
                mlp_norm=stream_norm(dim),
                mlp=MLP(dim=dim, mlp_dim=mlp_dim, activation=activation, device=device, dtype=dtype),
            )
            for _ in range(depth)
        )
        self.norm = stream_norm(dim)
        self.reset_parameters()

    def layer(self, index: int) -> ExpertLayer:
        """Return `layers[index]`, typed."""
        return cast("ExpertLayer", self.layers[index])

    def modulation_table(
        self, condition: Float[Tensor, "batch condition"] | Float[Tensor, "batch seq condition"]
    ) -> Float[Tensor, "norms batch per_token modulated"]:
        """Scales, shifts and gates of all norms, layer by layer and the final norm last, for a condition.

        `MoT.forward` takes the table in place of the condition. A flow's times are known before its first step: make
        the table for all of them, (times, condition), and hand `table[:, i : i + 1]` to step i.

        Returns:
            `2 * depth + 1` norms, of `2 * dim` features, `3 * dim` with gates; `per_token` is 1 for one condition a
            sample.
        """
        layers = map(self.layer, range(self.depth))
        norms = [norm for layer in layers for norm in (layer.attention_norm, layer.mlp_norm)] + [self.norm]
        return torch.stack([cast("ConditionedNorm", norm).modulate(condition) for norm in norms])

    def part(self, condition: Tensor, index: int) -> Tensor:
        """What a layer takes of a condition: all of it, or its rows of a table. Layer `depth` is the final norm."""
        return condition[2 * index : 2 * index + 2] if condition.ndim == TABLE_AXES else condition

    def final(self, x: Float[Tensor, "batch seq dim"], condition: Tensor | None) -> Float[Tensor, "batch seq dim"]:
        """Apply the final norm."""
        part = None if condition is None else self.part(condition, self.depth)
        return normalise(self.norm, x, *modulations(part, self.norm))

    def reset_parameters(self) -> None:
        """Draw all weights again, as the constructor does; call it after `to_empty` on a model built on `meta`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  torch's stub says never None
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, RMSNorm | LayerNorm | ConditionedNorm):
                module.reset_parameters()


def modulations(condition: Float[Tensor, "..."] | None, *norms: nn.Module) -> list[Modulation | None]:
    """Modulations of norms: computed from a condition, or their rows of a table; None for norms without a condition."""
    if condition is None:
        return [None] * len(norms)
    if condition.ndim == TABLE_AXES:
        return list(condition)
    return [cast("ConditionedNorm", norm).modulate(condition) for norm in norms]
