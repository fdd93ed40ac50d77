"""One layer of all experts at once: each stream through its own weights, one attention over all of them."""

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from moteur.mot.attention import AttentionFn
from moteur.mot.expert import ExpertLayer
from moteur.mot.rotary import Rotation, rotate

WriteFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes new keys and values, returns all that attention shall see: a cache slot's `write`, or the identity."""


def joint_layer(
    tokens: Mapping[str, Float[Tensor, "batch _ _"]],
    layers: Mapping[str, ExpertLayer],
    *,
    wanted: Collection[str],
    attention: AttentionFn,
    rotation: Rotation | None,
    write: WriteFn,
) -> dict[str, Float[Tensor, "batch _ _"]]:
    """Carry every stream through one layer; a stream that is not `wanted` gives its keys and values and ends here.

    The queries handed to `attention` are always the last positions of the keys, so it can tell from the two lengths
    which rows of a mask are meant. They start with the first wanted stream; an unwanted one after it holds its place
    with zeros, for which no weight is touched and whose rows are dropped.
    """
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    asking: list[str] = []
    for name, x in tokens.items():
        layer = layers[name]
        normed = layer.attention_norm(x)
        keys.append(layer.attention.keys(normed))
        values.append(layer.attention.values(normed))
        if name in wanted:
            queries.append(layer.attention.queries(normed))
            asking.append(name)
        elif queries:
            queries.append(keys[-1].new_zeros(*x.shape[:2], layer.attention.heads, layer.attention.head_dim))
            asking.append(name)

    key, value = _join(keys), _join(values)
    if rotation is not None:
        key = rotate(key, rotation)
    key, value = write(_heads_first(key), _heads_first(value))
    if not queries:
        return {}

    query = _join(queries)
    if rotation is not None:
        cos, sin = rotation
        start = cos.shape[1] - query.shape[1]
        query = rotate(query, (cos[:, start:], sin[:, start:]))
    query = _heads_first(query)
    attended = attention(query, key, value)
    if attended.shape != query.shape:
        raise ValueError(
            f"attention: expected it to return the shape of its queries {tuple(query.shape)}, "
            f"got {tuple(attended.shape)}"
        )
    parts = attended.transpose(1, 2).split([tokens[name].shape[1] for name in asking], dim=1)
    return {
        name: layers[name].finish(tokens[name], part)
        for name, part in zip(asking, parts, strict=True)
        if name in wanted
    }


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate along `seq`; `torch.cat` would copy a single part as well."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _heads_first(x: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch heads seq head_dim"]:
    return x.transpose(1, 2)
