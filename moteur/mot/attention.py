"""The linear maps on either side of attention; attention itself is a callable that the model is given."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot.norm import NormKind, make_norm

AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`attention(query, key, value) -> out`.

`query` and `out` are (batch, heads, query, head_dim), `key` and `value` (batch, kv_heads, key, head_dim); each
group of `heads / kv_heads` consecutive query heads shares one key head. The queries are always the last positions
of the keys.
"""


class Projections(nn.Module):
    """Query, key, value and output maps of one expert's layer, with optional norms of queries and keys per head.

    Heads stay on the third axis, (batch, seq, heads, head_dim), so that streams can be concatenated along `seq`
    and rotated without a copy.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        norm: NormKind | str,
        eps: float,
        qk_norm: bool,
        qkv_bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.query = nn.Linear(dim, heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.key = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.value = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.output = nn.Linear(heads * head_dim, dim, bias=False, device=device, dtype=dtype)
        self.query_norm = make_norm(norm, head_dim, eps=eps, device=device, dtype=dtype) if qk_norm else None
        self.key_norm = make_norm(norm, head_dim, eps=eps, device=device, dtype=dtype) if qk_norm else None

    # Plain torch reshapes here and in `joint`: tracing through einops made `torch.compile` four times slower.
    def queries(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq heads head_dim"]:
        """Map tokens to queries, not yet rotated."""
        query = self.query(x).unflatten(-1, (self.heads, self.head_dim))
        return query if self.query_norm is None else self.query_norm(query)

    def keys(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq kv_heads head_dim"]:
        """Map tokens to keys, not yet rotated."""
        key = self.key(x).unflatten(-1, (self.kv_heads, self.head_dim))
        return key if self.key_norm is None else self.key_norm(key)

    def values(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq kv_heads head_dim"]:
        """Map tokens to values."""
        return self.value(x).unflatten(-1, (self.kv_heads, self.head_dim))

    def merge(self, attended: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch seq dim"]:
        """Map what attention returned back to the width of the tokens."""
        return self.output(attended.flatten(-2))
