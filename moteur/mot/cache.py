"""The keys and values of tokens already seen: allocated once, written by slices."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KVCache:
    """Preallocated keys and values of every layer, and how many positions of them are valid.

    A call of `MoT` writes its own keys and values at `[length, length + n)` and never below `length`, and it leaves
    `length` as it is. To keep what a call wrote, go on with `cache.extended(n)`: same tensors, new length. To call
    again on the same frozen prefix, as each denoising step does, pass the same object again.

    Attributes:
        keys: rotated keys, (layers, batch, kv_heads, capacity, head_dim).
        values: values, the same shape.
        length: number of positions that count; those beyond it hold leftovers or zeros and are never read.

    Raises:
        ValueError: for a length outside `[0, capacity]`.

    Examples:
        >>> empty = torch.zeros(2, 1, 4, 10, 8)  # layers, batch, kv_heads, capacity, head_dim
        >>> cache = KVCache(keys=empty, values=empty.clone())
        >>> cache.extended(6).length, cache.length, cache.capacity
        (6, 0, 10)
    """

    keys: Float[Tensor, "layers batch kv_heads capacity head_dim"]
    values: Float[Tensor, "layers batch kv_heads capacity head_dim"]
    length: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.length <= self.capacity:
            raise ValueError(f"length: expected 0 to capacity={self.capacity}, got {self.length}")

    @property
    def capacity(self) -> int:
        """How many positions there is room for."""
        return self.keys.shape[3]

    def extended(self, count: int) -> "KVCache":
        """Count `count` more positions as valid; the tensors are shared, nothing is copied.

        Raises:
            ValueError: for a count that exceeds the room left.
        """
        return replace(self, length=self.length + count)

    def write(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_heads new head_dim"],
        value: Float[Tensor, "batch kv_heads new head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads total head_dim"], Float[Tensor, "batch kv_heads total head_dim"]]:
        """Put new keys and values behind the valid ones; return views of all of them, valid then new.

        Raises:
            ValueError: if they do not fit in shape, dtype or room, or carry a gradient that would be lost.
        """
        end = self.length + key.shape[2]
        rooms = [held[layer, :, :, self.length : end] for held in (self.keys, self.values)]
        for name, new, room in zip(("keys", "values"), (key, value), rooms, strict=True):
            if room.shape != new.shape or room.dtype != new.dtype:  # the copy would broadcast and convert
                raise ValueError(
                    f"cache: expected room for {name} {tuple(new.shape)} of {new.dtype} after length={self.length}, "
                    f"got {tuple(room.shape)} of {room.dtype}"
                )
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise ValueError(
                "cache: expected a call under torch.no_grad() or torch.inference_mode(), got keys that carry a "
                "gradient, which the cache would lose; train with a joint call instead"
            )
        for new, room in zip((key, value), rooms, strict=True):
            room.copy_(new)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
