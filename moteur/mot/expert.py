"""One expert: the weights of one stream."""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot.layers import MLP, Activation, LayerNorm, Norm, NormKind, Projections, RMSNorm, make_norm
from moteur.mot.rotary import Rotation


class ExpertLayer(nn.Module):
    """One expert's part of one layer, held as parts."""

    def __init__(self, *, attention_norm: Norm, attention: Projections, mlp_norm: Norm, mlp: MLP) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def project(
        self, x: Float[Tensor, "batch seq dim"], rotation: Rotation | None
    ) -> tuple[
        Float[Tensor, "batch seq heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
        Float[Tensor, "batch seq kv_heads head_dim"],
    ]:
        """Queries, keys and values of tokens; queries and keys are rotated."""
        return self.attention(self.attention_norm(x), rotation)

    def finish(
        self, x: Float[Tensor, "batch seq dim"], attended: Float[Tensor, "batch seq heads head_dim"]
    ) -> Float[Tensor, "batch seq dim"]:
        """Add the output of attention, then that of the MLP."""
        x = x + self.attention.output(attended.flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


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
        qkv_bias: whether the query, key and value maps have a bias. No other linear map has one.
        device: device of the parameters; `"meta"` allocates nothing.
        dtype: dtype of the parameters.

    Weights are drawn from torch's global generator: linear maps normal with standard deviation 0.02, biases zero,
    norm gains one.

    Raises:
        ValueError: for `kv_heads` that does not divide `heads`, an unknown activation or norm.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={heads}, got {kv_heads}")
        self.dim, self.depth, self.heads, self.kv_heads, self.head_dim = dim, depth, heads, kv_heads, head_dim
        new_norm = partial(make_norm, norm, eps=eps, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            ExpertLayer(
                attention_norm=new_norm(dim),
                attention=Projections(
                    dim=dim,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=head_dim,
                    bias=qkv_bias,
                    query_norm=new_norm(head_dim) if qk_norm else None,
                    key_norm=new_norm(head_dim) if qk_norm else None,
                    device=device,
                    dtype=dtype,
                ),
                mlp_norm=new_norm(dim),
                mlp=MLP(dim=dim, mlp_dim=mlp_dim, activation=activation, device=device, dtype=dtype),
            )
            for _ in range(depth)
        )
        self.norm = new_norm(dim)
        self.reset_parameters()

    def layer(self, index: int) -> ExpertLayer:
        """Return `layers[index]`, typed."""
        return cast("ExpertLayer", self.layers[index])

    def reset_parameters(self) -> None:
        """Draw all weights again, as the constructor does; call it after `to_empty` on a model built on `meta`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  torch's stub says never None
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm | LayerNorm):
                module.reset_parameters()
