"""An expert's trained weights rearranged into fused layers. The trained ones are read, never written."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot import Expert
from moteur.runtime.choice import Linears
from moteur.runtime.layer import FusedLayer, Memory, Norm


@dataclass(frozen=True)
class FusedExpert:
    """The layers of an expert, ready for inference.

    Attributes:
        layers: All of them, or all but the last where its output is never read.
        closing: The last layer for a call in which nobody reads the output: keys and values only.
        norm: The final norm.
        gain: What the weight after the final norm must be multiplied by, because `norm` does not.
    """

    layers: list[FusedLayer]
    closing: Memory
    norm: Norm
    gain: Float[Tensor, " dim"] | float


@torch.no_grad()
def fuse_expert(
    expert: Expert, linears: Linears, *, eps: float, rows: int, read: bool = True, float8: bool = False
) -> FusedExpert:
    """Rearrange an expert.

    Args:
        expert: The trained weights.
        linears: Builds the maps.
        eps: Of its norms.
        rows: About how many tokens a call brings.
        read: Whether its output is ever wanted; if not, only keys and values of the last layer are kept.
        float8: Hold the large maps in 8-bit floats.
    """
    fuse = _Fuse(expert, linears, eps=eps, rows=rows, float8=float8)
    last = expert.depth - 1
    gain = _gain(expert.norm)
    return FusedExpert(
        layers=[fuse.layer(index) for index in range(expert.depth if read else last)],
        closing=fuse.memory(last, queries=0),
        norm=fuse.norm(gain),
        gain=gain * gain.numel() ** 0.5 if linears.wide else 1.0,
    )


class _Fuse:
    """One expert on its way."""

    def __init__(self, expert: Expert, linears: Linears, *, eps: float, rows: int, float8: bool) -> None:
        self.expert, self.linears = expert, linears
        self.eps, self.rows, self.float8 = eps, rows, float8

    def layer(self, index: int) -> FusedLayer:
        layer, linears = self.expert.layer(index), self.linears
        gain = _gain(layer.mlp_norm)
        assert layer.mlp.gate is not None
        output = self._grouped(layer.attention.output.weight.mT).mT
        gate, up = (self._after(gain, map_.weight) for map_ in (layer.mlp.gate, layer.mlp.up))
        return FusedLayer(
            memory=self.memory(index, queries=self.expert.heads),
            output=linears.linear(output, rows=self.rows, float8=self.float8),
            mlp_norm=self.norm(gain),
            gate=linears.gate(gate, up, rows=self.rows, float8=self.float8),
            down=linears.linear(layer.mlp.down.weight, rows=self.rows, float8=self.float8),
        )

    def memory(self, index: int, *, queries: int) -> Memory:
        expert, layer = self.expert, self.expert.layer(index)
        attention, gain = layer.attention, _gain(layer.attention_norm)
        maps: list[nn.Linear] = [attention.query, attention.key, attention.value]
        weights, biases = [map_.weight for map_ in maps], [_bias(map_) for map_ in maps]
        weights[0] = self._grouped(weights[0])  # pyright: ignore[reportArgumentType, reportCallIssue]
        biases[0] = self._grouped(biases[0])
        first = 0 if queries else 1
        head_norm = None
        if attention.query_norm is not None and attention.key_norm is not None:
            gains = (
                _gain(attention.query_norm).expand(queries, -1),
                _gain(attention.key_norm).expand(expert.kv_heads, -1),
            )
            head_norm = self.norm(torch.cat(gains), moves=False)
        return Memory(
            queries=queries,
            kv_heads=expert.kv_heads,
            head_dim=expert.head_dim,
            norm=self.norm(gain),
            projection=self.linears.linear(
                self._after(gain, torch.cat(weights[first:])),
                torch.cat(biases[first:]) if attention.query.bias is not None else None,  # pyright: ignore[reportUnnecessaryComparison]
                rows=self.rows,
                float8=self.float8,
            ),
            head_norm=head_norm,
        )

    def norm(self, gain: Tensor, *, moves: bool = True) -> Norm:
        """A norm that leaves its gain to the next weight, where that is exact, or applies it, √dim included."""
        size, linears = gain.shape[-1], self.linears
        kind = torch.promote_types(linears.dtype, torch.float32)
        floor = torch.full((), (size * self.eps) ** 0.5, dtype=kind, device=linears.device)
        moved = moves and linears.wide
        return Norm(floor=floor, gain=None if moved else (gain * size**0.5).to(linears.device, kind))

    def _after(self, gain: Tensor, weight: Tensor) -> Tensor:
        """A weight that reads what a norm with this gain gives: half precision would round a folded gain twice."""
        return weight.double() * gain * gain.numel() ** 0.5 if self.linears.wide else weight

    def _grouped(self, values: Tensor) -> Tensor:
        """Query heads in the order (group, kv): heads that share keys stand one key head apart."""
        expert = self.expert
        return rearrange(values, "(kv group head) ... -> (group kv head) ...", kv=expert.kv_heads, head=expert.head_dim)


def _gain(norm: nn.Module) -> Tensor:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.double()


def _bias(map_: nn.Linear) -> Tensor:
    """A bias, zeros where there is none."""
    if map_.bias is None:  # pyright: ignore[reportUnnecessaryComparison]  torch's stub says never None
        return map_.weight.new_zeros(map_.out_features)
    return map_.bias
