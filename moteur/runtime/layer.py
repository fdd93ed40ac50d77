"""One layer of one expert, fused for inference.

The same function as `moteur.mot`'s layer with fewer and larger operations. What makes them few:

- An RMS norm is `x / hypot(‖x‖, √(d·ε))`: a norm, a hypotenuse, a division. Its gain, and the √d that is missing, are
  multiplied into the weight that reads it (float32 and wider; half precisions keep them apart and round once).
- Query, key and value are one product; query and key heads are normalised and rotated together.
- Query heads that share a key head become further rows of it, so attention is grouped without copies. The projection's
  rows and the output map's columns are stored in that order: heads as (group, kv) instead of (kv, group).
- Keys and values go straight into the cache, and attention needs no mask unless the batch is ragged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moteur.runtime.linear import Linear


@dataclass(frozen=True)
class Norm:
    """An RMS norm whose gain may have moved into the next weight; then `gain` is None."""

    floor: Tensor
    gain: Tensor | None

    def __call__(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """The norm of `x`, times 1/√dim where the gain is elsewhere; float32 or wider, not yet rounded."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.floor.dtype)
        scaled = x / torch.hypot(length, self.floor)
        return scaled if self.gain is None else scaled * self.gain


@dataclass(frozen=True)
class Slots:
    """One layer's keys and values of all tokens, and where those of this call go."""

    keys: Float[Tensor, "batch capacity kv_heads head_dim"]
    values: Float[Tensor, "batch capacity kv_heads head_dim"]
    start: int


@dataclass(frozen=True)
class Rows:
    """`count` rows that see the first `end` keys."""

    count: int
    end: int


@dataclass(frozen=True)
class Angles:
    """Rotary angles of the tokens of a call: cosines, and sines with the first half negated."""

    cos: Float[Tensor, "#batch seq 1 head_dim"]
    sin: Float[Tensor, "#batch seq 1 head_dim"]


@dataclass(frozen=True)
class Memory:
    """The part of a layer that leaves keys and values behind. `queries` counts query heads: 0 where nobody asks."""

    queries: int
    kv_heads: int
    head_dim: int
    norm: Norm
    projection: Linear
    head_norm: Norm | None

    def __call__(
        self, x: Float[Tensor, "batch seq dim"], angles: Angles, slots: Slots
    ) -> Float[Tensor, "batch seq queries head_dim"]:
        """Write the keys and values of tokens into `slots`; return their queries."""
        heads = self.projection(self.norm(x).to(x.dtype)).unflatten(-1, (-1, self.head_dim))
        turned, value = heads.split([self.queries + self.kv_heads, self.kv_heads], dim=2)
        if self.head_norm is not None:
            turned = self.head_norm(turned)
        rolled, scaled = turned.roll(self.head_dim // 2, dims=-1), turned * angles.cos
        mine = slice(slots.start, slots.start + x.shape[1])
        key = torch.addcmul(scaled[:, :, self.queries :], rolled[:, :, self.queries :], angles.sin)
        slots.keys[:, mine].copy_(key)
        slots.values[:, mine].copy_(value)
        if not self.queries:
            return scaled[:, :, :0]
        return torch.addcmul(scaled[:, :, : self.queries], rolled[:, :, : self.queries], angles.sin).to(x.dtype)


@dataclass(frozen=True)
class FusedLayer:
    """The weights of one expert's layer."""

    memory: Memory
    output: Linear
    mlp_norm: Norm
    gate: nn.Module
    down: Linear

    def __call__(
        self,
        x: Float[Tensor, "batch seq dim"],
        angles: Angles,
        slots: Slots,
        rows: Sequence[Rows],
        visible: Bool[Tensor, "batch 1 1 key"] | None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Carry tokens through the layer, leaving their keys and values in `slots`."""
        query, parts, start = self.memory(x, angles, slots), [], 0
        for part in rows:
            asking = query[:, start : start + part.count]
            parts.append(_attend(asking, slots, part.end, None if visible is None else visible[..., : part.end]))
            start += part.count
        x = self.output.plus(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), x)
        return self.down.plus(self.gate(self.mlp_norm(x).to(x.dtype)), x)


def _attend(
    query: Float[Tensor, "batch row queries head_dim"],
    slots: Slots,
    end: int,
    visible: Bool[Tensor, "batch 1 1 end"] | None,
) -> Float[Tensor, "batch row width"]:
    batch, count, _, head_dim = query.shape
    kv_heads = slots.keys.shape[2]
    attended = scaled_dot_product_attention(
        query.reshape(batch, -1, kv_heads, head_dim).transpose(1, 2),
        slots.keys[:, :end].transpose(1, 2),
        slots.values[:, :end].transpose(1, 2),
        attn_mask=visible,
    )
    return attended.transpose(1, 2).reshape(batch, count, -1)
