"""BAGEL, restated: a packed sequence in which text and pictures alternate, each token with the weights of its kind."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moteur.mot import Expert, MoT, expert_state_dict, rotary_angles
from moteur.mot.mot import AttentionFn

DIM, MLP, HEADS, KV_HEADS, HEAD_DIM, DEPTH, BASE, EPS = 24, 40, 4, 2, 8, 2, 1e4, 1e-6
PIECES = [("und", 4), ("gen", 3), ("und", 2), ("gen", 5), ("und", 1)]  # text, picture, text, picture, text
SUFFIX = {"und": "", "gen": "_moe_gen"}
PREFIX = "language_model.model."


def bagel_state() -> dict[str, Tensor]:
    """Random weights under the names of BAGEL's checkpoint."""
    shapes = {"norm{}.weight": (DIM,)}
    for index in range(DEPTH):
        layer = f"layers.{index}."
        shapes |= {
            f"{layer}input_layernorm{{}}.weight": (DIM,),
            f"{layer}post_attention_layernorm{{}}.weight": (DIM,),
            f"{layer}self_attn.q_norm{{}}.weight": (HEAD_DIM,),
            f"{layer}self_attn.k_norm{{}}.weight": (HEAD_DIM,),
            f"{layer}self_attn.q_proj{{}}.weight": (HEADS * HEAD_DIM, DIM),
            f"{layer}self_attn.q_proj{{}}.bias": (HEADS * HEAD_DIM,),
            f"{layer}self_attn.k_proj{{}}.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"{layer}self_attn.k_proj{{}}.bias": (KV_HEADS * HEAD_DIM,),
            f"{layer}self_attn.v_proj{{}}.weight": (KV_HEADS * HEAD_DIM, DIM),
            f"{layer}self_attn.v_proj{{}}.bias": (KV_HEADS * HEAD_DIM,),
            f"{layer}self_attn.o_proj{{}}.weight": (DIM, HEADS * HEAD_DIM),
            f"{layer}mlp{{}}.gate_proj.weight": (MLP, DIM),
            f"{layer}mlp{{}}.up_proj.weight": (MLP, DIM),
            f"{layer}mlp{{}}.down_proj.weight": (DIM, MLP),
        }
    draw = torch.Generator().manual_seed(2)
    state = {
        PREFIX + name.format(suffix): torch.randn(shape, generator=draw, dtype=torch.float64) / shape[-1] ** 0.5
        for name, shape in shapes.items()
        for suffix in SUFFIX.values()
    }
    return state | {PREFIX + "embed_tokens.weight": torch.zeros(5, DIM), "language_model.lm_head.weight": torch.ones(5)}


def packed_bagel(sequence: Tensor, kinds: list[str], state: dict[str, Tensor], mask: Tensor) -> Tensor:
    """The packed sequence (seq, dim) through all layers; `kinds` says whose weights each token takes."""

    def each(x: Tensor, function: Callable[[Tensor, str], Tensor]) -> Tensor:
        return torch.stack([function(row, SUFFIX[kind]) for row, kind in zip(x, kinds, strict=True)])

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * state[f"{PREFIX}{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        return state[f"{PREFIX}{name}.weight"] @ x + state.get(f"{PREFIX}{name}.bias", 0)

    frequencies = BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    turns = torch.exp(1j * torch.arange(len(sequence))[:, None, None] * frequencies)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.complex(*x.chunk(2, dim=-1)) * turns
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def mlp(x: Tensor, prefix: str) -> Tensor:
        gate = linear(x, f"{prefix}.gate_proj")
        return linear(gate / (1 + torch.exp(-gate)) * linear(x, f"{prefix}.up_proj"), f"{prefix}.down_proj")

    for index in range(DEPTH):
        at = f"layers.{index}."
        normed = each(sequence, lambda x, end, at=at: rms(x, f"{at}input_layernorm{end}"))
        query, key, value = (
            each(normed, lambda x, end, at=at, p=p: linear(x, f"{at}self_attn.{p}_proj{end}")).unflatten(
                1, (-1, HEAD_DIM)
            )
            for p in "qkv"
        )
        query = turned(each(query, lambda x, end, at=at: rms(x, f"{at}self_attn.q_norm{end}")))
        key = turned(each(key, lambda x, end, at=at: rms(x, f"{at}self_attn.k_norm{end}")))
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(HEAD_DIM)
        shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", shares, value).flatten(1)
        sequence = sequence + each(attended, lambda x, end, at=at: linear(x, f"{at}self_attn.o_proj{end}"))
        normed = each(sequence, lambda x, end, at=at: rms(x, f"{at}post_attention_layernorm{end}"))
        sequence = sequence + each(normed, lambda x, end, at=at: mlp(x, f"{at}mlp{end}"))
    return each(sequence, lambda x, end: rms(x, f"norm{end}"))


@pytest.mark.parametrize("calls", [(5,), (1, 4), (2, 2, 1), (1, 1, 1, 1, 1)], ids=str)
def test_interleaved_text_and_pictures_are_bagels_joint_and_cached(
    calls: tuple[int, ...], make_attention: Callable[[Tensor], AttentionFn]
) -> None:
    sizes = {"depth": DEPTH, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "dtype": torch.float64}
    mot = MoT({name: Expert(dim=DIM, mlp_dim=MLP, qk_norm=True, qkv_bias=True, eps=EPS, **sizes) for name in SUFFIX})
    state = bagel_state()
    for name, suffix in SUFFIX.items():
        mot.expert(name).load_state_dict(expert_state_dict(state, prefix=PREFIX, suffix=suffix))
    kinds = [name for name, length in PIECES for _ in range(length)]
    owners = torch.tensor([place for place, (_, length) in enumerate(PIECES) for _ in range(length)])
    place = torch.arange(len(kinds))
    picture = torch.tensor([kind == "gen" for kind in kinds])
    # Text is causal; tokens of a picture see each other.
    mask = (place[None] <= place[:, None]) | ((owners[None] == owners[:, None]) & picture)
    x = torch.randn(2, len(kinds), DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([packed_bagel(sample, kinds, state, mask) for sample in x])

    cos, sin = rotary_angles(place[None], head_dim=HEAD_DIM, base=BASE, dtype=torch.float64)
    pieces = list(zip([name for name, _ in PIECES], x.split([length for _, length in PIECES], dim=1), strict=True))
    found: list[tuple[str, Tensor]] = []
    cache = mot.new_cache(batch=2, capacity=len(kinds))
    with torch.no_grad():
        for count in calls:
            now, pieces = pieces[:count], pieces[count:]
            new = slice(cache.length, cache.length + sum(tokens.shape[1] for _, tokens in now))
            found += mot(now, attention=make_attention(mask), rotary=(cos[:, new], sin[:, new]), cache=cache)
            cache = cache.extended(new.stop - new.start)
    assert [name for name, _ in found] == [name for name, _ in PIECES]
    torch.testing.assert_close(torch.cat([tokens for _, tokens in found], dim=1), expected, rtol=1e-10, atol=1e-12)
