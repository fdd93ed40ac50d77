"""The Mixture-of-Transformers: named experts, each with its own weights, joined in one attention."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moteur.mot.cache import KVCache
from moteur.mot.expert import TABLE_AXES, Expert
from moteur.mot.layers import Modulation, normalise
from moteur.mot.rotary import Rotary, Rotation, prepare_rotation

AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`attention(query, key, value) -> out`, see `MoT.forward`."""

WriteFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the new keys and values of a layer, returns all that attention sees: a layer's `KVCache.write`."""


class MoT(nn.Module):
    r"""Several transformers that share nothing but attention.

    Each *stream* of tokens passes through its own *expert* (norms, projections, MLP, of its own width); in every
    layer the queries, keys and values of all streams are concatenated, in the order of `experts`, and attend
    together. Who may see whom is the business of the `attention` callable. With one expert it is a plain
    transformer.

    Args:
        experts: name to expert. They share `depth`, `heads`, `kv_heads` and `head_dim`; nothing else.
        activation_checkpointing: whether layers are recomputed in the backward pass instead of keeping their
            activations, one layer at a time, whenever gradients are recorded.

    Raises:
        ValueError: for no expert at all, or experts whose sizes differ.
        KeyError: for a name that `nn.ModuleDict` cannot hold.

    Source: Liang et al., "Mixture-of-Transformers", arXiv 2411.04996.

    Examples:
        >>> from torch.nn.functional import scaled_dot_product_attention as sdpa
        >>> shared = dict(depth=2, heads=4, kv_heads=4, head_dim=8)
        >>> mot = MoT({"und": Expert(dim=32, mlp_dim=64, **shared), "act": Expert(dim=16, mlp_dim=32, **shared)})
        >>> streams = {"und": torch.randn(1, 5, 32), "act": torch.randn(1, 3, 16)}
        >>> {name: tuple(out.shape) for name, out in mot(streams, attention=sdpa).items()}
        {'und': (1, 5, 32), 'act': (1, 3, 16)}
    """

    def __init__(self, experts: Mapping[str, Expert], *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        sizes = {name: (own.depth, own.heads, own.kv_heads, own.head_dim) for name, own in experts.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"experts: expected at least one, all of the same depth, heads, kv_heads and head_dim, got {sizes}"
            )
        self.experts = nn.ModuleDict(dict(experts))
        self.depth, self.heads, self.kv_heads, self.head_dim = next(iter(sizes.values()))
        self.activation_checkpointing = activation_checkpointing

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """Compile what a layer does before and after attention, with `torch.compile`; lengths may vary afterwards."""
        compiled = partial(  # pyright: ignore[reportCallIssue]  the stub lags behind the signature
            torch.compile, fullgraph=True, dynamic=True, backend=backend, recompile_limit=32
        )
        for name in self.experts:
            for index in range(self.depth):
                layer = self.expert(name).layer(index)
                layer.project, layer.finish = compiled(layer.project), compiled(layer.finish)

    def expert(self, name: str) -> Expert:
        """Return `experts[name]`, typed."""
        return cast("Expert", self.experts[name])

    def new_cache(
        self,
        *,
        batch: int,
        capacity: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache:
        """Allocate an empty cache for `capacity` tokens of each of `batch` samples.

        Device and dtype are those of the weights unless said otherwise (under autocast, say the autocast dtype).
        """
        shape = (self.depth, batch, self.kv_heads, capacity, self.head_dim)
        if device is None or dtype is None:
            weight = self.expert(next(iter(self.experts))).layer(0).attention.qkv.weight
            device, dtype = device or weight.device, dtype or weight.dtype
        return KVCache(
            keys=torch.zeros(shape, device=device, dtype=dtype), values=torch.zeros(shape, device=device, dtype=dtype)
        )

    def forward(
        self,
        streams: Mapping[str, Float[Tensor, "batch _ _"]],
        *,
        attention: AttentionFn,
        rotary: Rotary | None = None,
        conditions: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({}),
        cache: KVCache | None = None,
        outputs: Collection[str] | None = None,
    ) -> dict[str, Float[Tensor, "batch _ _"]]:
        """Carry streams through all layers and their final norms.

        Args:
            streams: expert name to tokens (batch, seq, dim of that expert): any subset of the experts. The order of
                tokens in attention is that of the experts, whatever the order in this mapping.
            attention: `attention(query, key, value) -> out`. `query` and `out` are (batch, heads, query, head_dim),
                `key` and `value` (batch, kv_heads, key, head_dim); `heads / kv_heads` consecutive query heads share one
                key head. Keys are those of the cache, if there is one, then those of the streams; queries are the last
                of these positions. It sees no names: a mask must be made for the order of the experts.
            rotary: (cos, sin), each (batch, seq, head_dim), for the tokens of this call in order, from
                `rotary_angles`; None for no rotation.
            conditions: expert name to what drives its norms, for just those streams whose expert has a `condition`:
                (batch, condition), (batch, seq, condition) for one a token, or the table that
                `Expert.modulation_table` made of either. Batch and seq may be 1, to serve all.
            cache: earlier keys and values, and room for those of this call, see `KVCache`. Needs `torch.no_grad()`
                (or `inference_mode`) unless nothing requires a gradient.
            outputs: names of the streams whose result is wanted; None is all. Another stream ends with the keys and
                values of its last layer and is absent from the result. `()` only fills the cache.

        Returns:
            Name to tokens after the expert's final norm, in the order of the experts.

        Raises:
            ValueError: for streams or outputs that are not there, rotary angles of another batch, conditions that are
                missing, too many or of another shape, a cache that does not fit, an attention that returns another
                shape than its queries'.
        """
        names = [name for name in self.experts if name in streams]
        if not streams or len(names) != len(streams):
            raise ValueError(f"streams: expected some of {list(self.experts)}, got {list(streams)}")
        wanted = names if outputs is None else outputs
        if not set(wanted) <= set(names):
            raise ValueError(f"outputs: expected some of the given streams {names}, got {list(wanted)}")
        if cache is not None and cache.keys.shape[0] != self.depth:
            raise ValueError(f"cache: expected {self.depth} layers, got {cache.keys.shape[0]}")
        tokens = {name: streams[name] for name in names}
        experts = {name: self.expert(name) for name in names}
        conditioned = [name for name in names if experts[name].condition is not None]
        if set(conditions) != set(conditioned):
            raise ValueError(f"conditions: expected one for each of {conditioned}, got {list(conditions)}")
        for name, condition in conditions.items():
            _check_condition(name, condition, tokens[name], experts[name])
        rotations: dict[str, Rotation | None] = dict.fromkeys(names)
        if rotary is not None:
            batch = tokens[names[0]].shape[0]
            if rotary[0].shape[0] not in {1, batch}:  # the tokens would be broadcast
                raise ValueError(f"rotary: expected a batch of 1 or {batch}, got {rotary[0].shape[0]}")
            lengths = [x.shape[1] for x in tokens.values()]
            parts = zip(*(table.split(lengths, dim=1) for table in prepare_rotation(rotary)), strict=True)
            rotations |= dict(zip(names, parts, strict=True))

        for index in range(self.depth):
            layer = partial(
                joint_layer,
                index=index,
                experts=experts,
                wanted=wanted if index == self.depth - 1 else names,
                attention=attention,
                rotations=rotations,
                conditions=conditions,
                write=None if cache is None else partial(cache.write, index),
            )
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = cast("dict[str, Tensor]", checkpoint(layer, tokens, use_reentrant=False))
            else:
                tokens = layer(tokens)
        return {
            name: normalise(experts[name].norm, x, experts[name].modulation(2 * self.depth, conditions.get(name)))
            for name, x in tokens.items()
        }


def joint_layer(
    tokens: Mapping[str, Float[Tensor, "batch _ _"]],
    *,
    index: int,
    experts: Mapping[str, Expert],
    wanted: Collection[str],
    attention: AttentionFn,
    rotations: Mapping[str, Rotation | None],
    conditions: Mapping[str, Tensor],
    write: WriteFn | None,
) -> dict[str, Float[Tensor, "batch _ _"]]:
    """One layer of all experts: each stream through its own weights, one attention over all of them.

    A stream that is not `wanted` gives its keys and values and ends here. The queries handed to `attention` are always
    the last positions of the keys, so it can tell from the two lengths which rows of a mask are meant. They start with
    the first wanted stream; the output for an unwanted one after it is dropped.
    """
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    asking: list[str] = []
    modulations: dict[str, tuple[Modulation | None, Modulation | None]] = {}
    for name, x in tokens.items():
        first, second = (experts[name].modulation(2 * index + place, conditions.get(name)) for place in range(2))
        modulations[name] = first, second
        query, key, value = experts[name].layer(index).project(x, rotations[name], first)
        keys.append(key)
        values.append(value)
        if queries or name in wanted:
            queries.append(query)
            asking.append(name)
    key, value = _heads_first(_join(keys)), _heads_first(_join(values))
    if write is not None:
        key, value = write(key, value)
    if not queries:
        return {}
    query = _heads_first(_join(queries))
    attended = attention(query, key, value)
    if attended.shape != query.shape:
        raise ValueError(
            f"attention: expected it to return the shape of its queries {tuple(query.shape)}, "
            f"got {tuple(attended.shape)}"
        )
    parts = attended.transpose(1, 2).split([tokens[name].shape[1] for name in asking], dim=1)
    return {
        name: experts[name].layer(index).finish(tokens[name], part, modulations[name])
        for name, part in zip(asking, parts, strict=True)
        if name in wanted
    }


def _check_condition(name: str, condition: Tensor, tokens: Tensor, expert: Expert) -> None:
    batch, seq = tokens.shape[:2]
    norms, width = 2 * expert.depth + 1, (3 if expert.residual_gate else 2) * expert.dim
    table = condition.ndim == TABLE_AXES
    last = width if table else expert.condition
    lead = condition.shape[int(table) : -1]
    fits = condition.ndim > 1 and condition.shape[-1] == last and (not table or condition.shape[0] == norms)
    if not fits or any(size not in (1, own) for size, own in zip(lead, (batch, seq), strict=False)):
        raise ValueError(
            f"conditions: expected for {name} (batch, {expert.condition}), (batch, seq, {expert.condition}) or a table "
            f"({norms}, batch, seq, {width}), with batch {batch} or 1 and seq {seq} or 1, got {tuple(condition.shape)}"
        )


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate along `seq`; `torch.cat` would copy a single part as well."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _heads_first(x: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
    return x.transpose(1, 2)
