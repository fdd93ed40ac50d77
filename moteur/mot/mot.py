"""The Mixture-of-Transformers: named experts, each with its own weights, joined in one attention."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moteur.mot.cache import KVCache
from moteur.mot.expert import TABLE_AXES, Carried, Expert, ExpertLayer
from moteur.mot.rotary import Rotary, Rotation, prepare_rotation

AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`attention(query, key, value) -> out`, see `MoT.forward`."""

WriteFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the new keys and values of a layer, returns all that attention sees: a layer's `KVCache.write`."""

Streams: TypeAlias = Mapping[str, Float[Tensor, "batch _ _"]] | Sequence[tuple[str, Float[Tensor, "batch _ _"]]]
"""Expert name to tokens, or a sequence of (expert name, tokens) in which an expert may come back."""

Count: TypeAlias = int | torch.SymInt
"""A size, symbolic while a call is exported."""

Order: TypeAlias = Sequence[tuple[str, Count]]
"""The sequence that attention sees: whose tokens, and how many of them, piece after piece."""


class MoT(nn.Module):
    r"""Several transformers that share nothing but attention.

    Each *stream* of tokens passes through its own *expert* (norms, projections, MLP, of its own width); in every
    layer the queries, keys and values of all streams are concatenated, in the order of `experts`, and attend
    together. Who may see whom is the business of the `attention` callable. With one expert it is a plain
    transformer.

    Args:
        experts: name to expert. They share `depth`, `heads`, `kv_heads` and `head_dim`; nothing else.
        at: for experts with fewer layers, in which layers of the first expert theirs stand, increasing. In the others
            their tokens stay as they are and nobody sees them. Each expert's layers are among those of the one before
            it, so that what attention and cache hold in a layer are the first tokens of the sequence.
        rotated: how many features of a head, the first ones, the rotary angles turn; None for all of them.
        activation_checkpointing: whether layers are recomputed in the backward pass instead of keeping their
            activations, one layer at a time, whenever gradients are recorded.

    Raises:
        ValueError: for no expert at all, experts whose sizes differ, layers in `at` that do not exist, an odd number of
            rotated features or more than a head has.
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

    def __init__(
        self,
        experts: Mapping[str, Expert],
        *,
        at: Mapping[str, Sequence[int]] = MappingProxyType({}),
        rotated: int | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        sizes = {name: (own.depth, own.heads, own.kv_heads, own.head_dim) for name, own in experts.items()}
        depth = next(iter(sizes.values()), (0,))[0]
        if len({(depth if name in at else own[0], *own[1:]) for name, own in sizes.items()}) != 1:
            raise ValueError(
                f"experts: expected at least one, all of the same depth, heads, kv_heads and head_dim, got {sizes}"
            )
        self.experts = nn.ModuleDict(dict(experts))
        self.depth, self.heads, self.kv_heads, self.head_dim = next(iter(sizes.values()))
        self.rotated = self.head_dim if rotated is None else rotated
        if rotated is not None and (rotated % 2 or not 0 < rotated <= self.head_dim):
            raise ValueError(f"rotated: expected an even number up to head_dim={self.head_dim}, got {rotated}")
        self._places = _places(experts, at)
        self.activation_checkpointing = activation_checkpointing

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """Compile what a layer does before and after attention, with `torch.compile`; lengths may vary afterwards."""
        compiled = partial(  # pyright: ignore[reportCallIssue]  the stub lags behind the signature
            torch.compile, fullgraph=True, dynamic=True, backend=backend, recompile_limit=32
        )
        for name in self.experts:
            expert = self.expert(name)
            for layer in map(expert.layer, range(expert.depth)):
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
        streams: Streams,
        *,
        attention: AttentionFn | Sequence[AttentionFn],
        rotary: Rotary | Sequence[Rotary | None] | None = None,
        conditions: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({}),
        cache: KVCache | None = None,
        outputs: Collection[str] | None = None,
    ) -> dict[str, Float[Tensor, "batch _ _"]] | list[tuple[str, Float[Tensor, "batch _ _"]]]:
        """Carry streams through all layers and their final norms.

        Args:
            streams: expert name to tokens (batch, seq, dim of that expert): any subset of the experts. The order of
                tokens in attention is that of the experts, whatever the order in this mapping. Or a sequence of
                (expert name, tokens): its order is that of the tokens, and an expert may come back in it.
            attention: `attention(query, key, value) -> out`, or one for each layer. `query` and `out` are (batch,
                heads, query, head_dim), `key` and `value` (batch, kv_heads, key, head_dim); `heads / kv_heads`
                consecutive query heads share one key head. Keys are those of the cache, if there is one, then those of
                the streams; queries are the last of these positions. It sees no names: a mask must be made for the
                order of the tokens.
            rotary: (cos, sin), each (batch, seq, rotated), for the tokens of this call in order, from
                `rotary_angles`; None for no rotation. Or one of these for each layer.
            conditions: expert name to what drives its norms, for just those streams whose expert has a `condition`:
                (batch, condition), (batch, seq, condition) for one a token, or the table that
                `Expert.modulation_table` made of either. Batch and seq may be 1, to serve all; where an expert comes
                back, seq counts all its tokens.
            cache: earlier keys and values, and room for those of this call, see `KVCache`. Needs `torch.no_grad()`
                (or `inference_mode`) unless nothing requires a gradient.
            outputs: names of the streams whose result is wanted; None is all. Another stream ends with the keys and
                values of its last layer and is absent from the result. `()` only fills the cache.

        Returns:
            Tokens after their expert's final norm, in the form of `streams`: a mapping in the order of the experts, or
            a list of (expert name, tokens) in the given order.

        Raises:
            ValueError: for streams or outputs that are not there, attention or rotary angles for another number of
                layers, rotary angles of another batch or width, conditions that are missing, too many or of another
                shape, a cache that does not fit, an attention that returns another shape than its queries'.
        """
        tokens: dict[str, Tensor] = {}
        for tokens in self.walk(  # noqa: B007  the last is what counts
            streams, attention=attention, rotary=rotary, conditions=conditions, cache=cache, outputs=outputs
        ):
            pass
        result = {name: self.expert(name).final(x, conditions.get(name)) for name, x in tokens.items()}
        if isinstance(streams, Mapping):
            return result
        order = [(name, x.shape[1]) for name, x in streams if name in result]
        return [(name, x) for (name, _), x in zip(order, _pieces(list(result.values()), result, order), strict=True)]

    def walk(
        self,
        streams: Streams,
        *,
        attention: AttentionFn | Sequence[AttentionFn],
        rotary: Rotary | Sequence[Rotary | None] | None = None,
        conditions: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({}),
        cache: KVCache | None = None,
        outputs: Collection[str] | None = None,
    ) -> Iterator[dict[str, Float[Tensor, "batch _ _"]]]:
        """Yield the hidden states: tokens as they enter the first layer, then as they leave each layer.

        Arguments are those of `forward`, which goes all the way and applies the final norms. What is not asked for is
        not computed: leave the loop at the layer whose hidden states you want.

        Yields:
            Expert name to its tokens, all of them side by side where an expert comes back.
        """
        pieces = self._ordered(streams)
        order = [(name, x.shape[1]) for name, x in pieces]
        tokens = _gathered([x for _, x in pieces], order)
        names, batch = list(tokens), pieces[0][1].shape[0]
        wanted = names if outputs is None else outputs
        if not set(wanted) <= set(names):
            raise ValueError(f"outputs: expected some of the given streams {names}, got {list(wanted)}")
        if cache is not None and cache.keys.shape[0] != self.depth:
            raise ValueError(f"cache: expected {self.depth} layers, got {cache.keys.shape[0]}")
        experts = {name: self.expert(name) for name in names}
        _check_conditions(conditions, tokens, experts)
        attentions = [attention] * self.depth if callable(attention) else attention
        alone = rotary is None or isinstance(rotary[0], Tensor)
        rotaries = cast("Sequence[Rotary | None]", [rotary] * self.depth if alone else rotary)
        for name, each in (("attention", attentions), ("rotary", rotaries)):
            if len(each) != self.depth:
                raise ValueError(f"{name}: expected one, or one for each of {self.depth} layers, got {len(each)}")

        rotations: Mapping[str, Rotation] = {}
        yield tokens
        for index in range(self.depth):
            if index == 0 or rotaries[index] is not rotaries[index - 1]:
                rotations = self._rotations(rotaries[index], order, batch=batch)
            places = self._places[index]
            present = [name for name in names if name in places]
            layer = partial(
                joint_layer,
                layers={name: experts[name].layer(places[name]) for name in present},
                order=order if len(present) == len(names) else [piece for piece in order if piece[0] in places],
                wanted=wanted if index == self.depth - 1 else names,
                attention=attentions[index],
                rotations=rotations,
                conditions={
                    name: experts[name].part(given, places[name])
                    for name, given in conditions.items()
                    if name in places
                },
                write=None if cache is None else partial(cache.write, index),
            )
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = cast("dict[str, Tensor]", checkpoint(layer, tokens, use_reentrant=False))
            else:
                tokens = layer(tokens)
            yield tokens

    def _ordered(self, streams: Streams) -> Sequence[tuple[str, Tensor]]:
        """The pieces of the sequence that attention will see, checked."""
        if isinstance(streams, Mapping):
            pieces = [(name, streams[name]) for name in self.experts if name in streams]
        else:
            pieces = [(name, x) for name, x in streams if name in self.experts]
        if not pieces or len(pieces) != len(streams):
            given = list(streams) if isinstance(streams, Mapping) else [name for name, _ in streams]
            raise ValueError(f"streams: expected some of {list(self.experts)}, got {given}")
        names = [name for name, _ in pieces]
        depths = [self.expert(name).depth for name in names]
        if depths != sorted(depths, reverse=True):  # of two experts, the one of fewer layers has some of the other's
            raise ValueError(f"streams: expected nobody after an expert of fewer layers, got {names}")
        return pieces

    def _rotations(self, rotary: Rotary | None, order: Order, *, batch: Count) -> dict[str, tuple[Tensor, Tensor]]:
        """The angles of each expert's tokens."""
        if rotary is None:
            return {}
        given, _, width = rotary[0].shape
        if given not in (1, batch):  # the tokens would be broadcast
            raise ValueError(f"rotary: expected a batch of 1 or {batch}, got {given}")
        if width != self.rotated:
            raise ValueError(f"rotary: expected angles for {self.rotated} features of a head, got {width}")
        lengths = [length for _, length in order]
        cos, sin = (_gathered(table.split(lengths, dim=1), order) for table in prepare_rotation(rotary))
        return {name: (cos[name], sin[name]) for name in cos}


def joint_layer(
    tokens: Mapping[str, Float[Tensor, "batch _ _"]],
    *,
    layers: Mapping[str, ExpertLayer],
    order: Order,
    wanted: Collection[str],
    attention: AttentionFn,
    rotations: Mapping[str, Rotation],
    conditions: Mapping[str, Tensor],
    write: WriteFn | None,
) -> dict[str, Float[Tensor, "batch _ _"]]:
    """One layer of all experts: each stream through its own weights, one attention over all of them.

    Tokens of experts that have no layer here stay as they are. A stream that is not `wanted` gives its keys and values
    and ends here. The queries handed to `attention` are always the last positions of the keys, so it can tell from the
    two lengths which rows of a mask are meant. They start with the first wanted stream; the output for an unwanted one
    after it is dropped.
    """
    after = {name: x for name, x in tokens.items() if name in wanted}
    if not layers:
        return after
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    carried: dict[str, Carried] = {}
    for name, layer in layers.items():
        query, key, value, carried[name] = layer.project(tokens[name], rotations.get(name), conditions.get(name))
        queries.append(query)
        keys.append(key)
        values.append(value)
    if len(layers) < len(order):
        queries, keys, values = (_pieces(each, layers, order) for each in (queries, keys, values))
    key, value = _heads_first(_join(keys)), _heads_first(_join(values))
    if write is not None:
        key, value = write(key, value)
    asking = order
    while asking and asking[0][0] not in wanted:
        asking = asking[1:]
    if not asking:
        return after
    query = _heads_first(_join(queries[-len(asking) :]))
    attended = attention(query, key, value)
    if attended.shape != query.shape:
        raise ValueError(
            f"attention: expected it to return the shape of its queries {tuple(query.shape)}, "
            f"got {tuple(attended.shape)}"
        )
    parts = attended.transpose(1, 2).split_with_sizes([length for _, length in asking], dim=1)
    for name, part in _gathered(parts, asking).items():
        if name in wanted:
            after[name] = layers[name].finish(tokens[name], part, carried[name])
    return after


def _places(experts: Mapping[str, Expert], at: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """For each layer, which experts are present, and which of its own layers each of them has there."""
    if not set(at) <= set(experts):
        raise ValueError(f"at: expected names out of {list(experts)}, got {list(at)}")
    depth = next(iter(experts.values())).depth
    places: list[dict[str, int]] = [{} for _ in range(depth)]
    before = list(range(depth))
    for name, expert in experts.items():
        own = list(at.get(name, range(expert.depth)))
        if len(own) != expert.depth or own != sorted(set(own)) or not set(own) <= set(before):
            raise ValueError(
                f"at: expected for {name} {expert.depth} increasing layers out of {before}, those of the expert before "
                f"it, got {own}"
            )
        for place, index in enumerate(own):
            places[index][name] = place
        before = own
    return places


def _check_conditions(
    conditions: Mapping[str, Tensor], tokens: Mapping[str, Tensor], experts: Mapping[str, Expert]
) -> None:
    expected = [name for name, expert in experts.items() if expert.condition is not None]
    if set(conditions) != set(expected):
        raise ValueError(f"conditions: expected one for each of {expected}, got {list(conditions)}")
    for name, condition in conditions.items():
        expert, (batch, seq, dim) = experts[name], tokens[name].shape
        norms, width = 2 * expert.depth + 1, (3 if expert.residual_gate else 2) * dim
        table = condition.ndim == TABLE_AXES
        fits = 1 < condition.ndim <= TABLE_AXES and condition.shape[-1] == (width if table else expert.condition)
        fits = fits and (not table or condition.shape[0] == norms)
        rows = condition.shape[int(table) : -1]  # (batch,) or (batch, seq)
        if not (fits and rows[0] in (1, batch) and (len(rows) == 1 or rows[1] in (1, seq))):
            raise ValueError(
                f"conditions: expected for {name} (batch, {expert.condition}), (batch, seq, {expert.condition}) or a "
                f"table ({norms}, batch, seq, {width}), with batch {batch} or 1 and seq {seq} or 1, "
                f"got {tuple(condition.shape)}"
            )


def _pieces(tokens: Sequence[Tensor], names: Iterable[str], order: Order) -> list[Tensor]:
    """The tokens of each expert, cut where another one comes between, in order."""
    cut = {
        name: iter(x.split([length for own, length in order if own == name], dim=1))
        for name, x in zip(names, tokens, strict=True)
    }
    return [next(cut[name]) for name, _ in order]


def _gathered(pieces: Sequence[Tensor], order: Order) -> dict[str, Tensor]:
    """The pieces of each expert side by side, the inverse of `_pieces`."""
    found = {name: piece for (name, _), piece in zip(order, pieces, strict=True)}
    if len(found) < len(order):
        found = {
            name: torch.cat([x for (own, _), x in zip(order, pieces, strict=True) if own == name], dim=1)
            for name in found
        }
    return found


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate along `seq`; `torch.cat` would copy a single part as well."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _heads_first(x: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
    return x.transpose(1, 2)
