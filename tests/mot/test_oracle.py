"""The joint path against a slow oracle in float64: plain loops over samples, heads, tokens and pairs of features."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moteur.mot import MoT, rotary_angles
from moteur.mot.mot import AttentionFn

LENGTHS = {"und": 5, "gen": 4, "act": 3}
BASE = 50.0
KINDS = {
    "und": {"norm": "rms", "activation": "swiglu", "eps": 1e-6},
    "gen": {"norm": "rms_unit_offset", "activation": "geglu_tanh", "eps": 1e-6},
    "act": {"norm": "layer", "activation": "gelu", "eps": 1e-3},
}
Weights = dict[str, Tensor]


def separate(mot: MoT) -> Weights:
    """The weights with query, key, value, gate and up under names of their own."""
    found: Weights = {}
    sizes = [mot.heads * mot.head_dim, *[mot.kv_heads * mot.head_dim] * 2]
    for name, x in mot.named_parameters():
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), x.split(sizes), strict=True)
            found |= {name.replace(".qkv.", f".{part}."): rows for part, rows in parts}
        elif ".gate_up." in name:
            parts = zip(("gate", "up"), x.chunk(2), strict=True)
            found |= {name.replace(".gate_up.", f".{part}."): rows for part, rows in parts}
        else:
            found[name] = x
    return found


def norm(x: Tensor, weights: Weights, prefix: str, *, kind: str, eps: float) -> Tensor:
    gain = weights[prefix + ".weight"]
    if kind == "layer":
        x = x - x.sum(-1, keepdim=True) / x.shape[-1]
    x = x / ((x**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5
    if kind == "layer":
        return x * gain + weights[prefix + ".bias"]
    return x * (gain + 1 if kind == "rms_unit_offset" else gain)


def mlp(x: Tensor, weights: Weights, prefix: str, *, activation: str) -> Tensor:
    up = x @ weights[prefix + ".up.weight"].T
    gate = up if activation == "gelu" else x @ weights[prefix + ".gate.weight"].T
    if activation == "swiglu":
        phi = gate / (1 + torch.exp(-gate))
    elif activation == "geglu_tanh":
        phi = gate / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    else:
        phi = gate / 2 * (1 + torch.erf(gate / math.sqrt(2)))
    return (phi if activation == "gelu" else phi * up) @ weights[prefix + ".down.weight"].T


def project(x: Tensor, weights: Weights, prefix: str, heads: int) -> Tensor:
    """Give (heads, seq, head_dim) for one sample."""
    y = x @ weights[prefix + ".weight"].T + weights.get(prefix + ".bias", 0)
    size = y.shape[-1] // heads
    return torch.stack([y[:, head * size : (head + 1) * size] for head in range(heads)])


def turn(x: Tensor, positions: list[int]) -> Tensor:
    """Rotate each pair of features as a complex number."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angles = [[p * BASE ** (-2 * j / x.shape[-1]) for j in range(half)] for p in positions]
    turned = pairs * torch.exp(1j * torch.tensor(angles, dtype=torch.float64, device=x.device))
    return torch.cat([turned.real, turned.imag], dim=-1)


def oracle_sample(
    streams: dict[str, Tensor], weights: Weights, *, mask: Tensor, positions: list[int], mot: MoT
) -> dict[str, Tensor]:
    lengths = [x.shape[0] for x in streams.values()]
    for index in range(mot.depth):
        parts: dict[str, list[Tensor]] = {"query": [], "key": [], "value": []}
        for name, x in streams.items():
            kind = {key: KINDS[name][key] for key in ("norm", "eps")}
            prefix = f"experts.{name}.layers.{index}."
            normed = norm(x, weights, prefix + "attention_norm", kind=kind["norm"], eps=kind["eps"])
            for what, heads in (("query", mot.heads), ("key", mot.kv_heads), ("value", mot.kv_heads)):
                y = project(normed, weights, f"{prefix}attention.{what}", heads)
                if f"{prefix}attention.{what}_norm.weight" in weights:
                    y = norm(y, weights, f"{prefix}attention.{what}_norm", kind=kind["norm"], eps=kind["eps"])
                parts[what].append(y)
        query, key, value = (torch.cat(parts[what], dim=1) for what in ("query", "key", "value"))
        query, key = turn(query, positions), turn(key, positions)
        rows = []
        for i in range(query.shape[1]):
            seen = [j for j in range(key.shape[1]) if mask[i, j]]
            heads = []
            for head in range(mot.heads):
                shared = head // (mot.heads // mot.kv_heads)
                scores = torch.stack([query[head, i] @ key[shared, j] / math.sqrt(mot.head_dim) for j in seen])
                share = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
                heads.append(sum(share[n] * value[shared, j] for n, j in enumerate(seen)))
            rows.append(torch.cat(heads))
        attended = torch.stack(rows).split(lengths)
        after = {}
        for (name, x), part in zip(streams.items(), attended, strict=True):
            prefix = f"experts.{name}.layers.{index}."
            x = x + part @ weights[prefix + "attention.output.weight"].T  # noqa: PLW2901  the residual stream
            normed = norm(x, weights, prefix + "mlp_norm", kind=KINDS[name]["norm"], eps=KINDS[name]["eps"])
            after[name] = x + mlp(normed, weights, prefix + "mlp", activation=KINDS[name]["activation"])
        streams = after
    return {
        name: norm(x, weights, f"experts.{name}.norm", kind=KINDS[name]["norm"], eps=KINDS[name]["eps"])
        for name, x in streams.items()
    }


@pytest.mark.parametrize("names", [("und", "gen", "act"), ("act", "und"), ("gen",)], ids="-".join)
def test_joint_values_and_every_gradient_equal_the_oracle(
    *,
    names: tuple[str, ...],
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device, names=names)
    lengths = {name: LENGTHS[name] for name in names}
    streams = {name: x.requires_grad_() for name, x in make_streams(mot, lengths).items()}
    mask = make_mask(lengths, device=device)
    mask |= torch.eye(len(mask), dtype=torch.bool, device=device).roll(1, 0)  # and something irregular
    positions = [3 * i + i % 2 for i in range(len(mask))]
    table = torch.tensor(positions, device=device)[None]
    rotary = rotary_angles(table, head_dim=mot.head_dim, base=BASE, dtype=torch.float64)

    actual = mot(streams, attention=make_attention(mask), rotary=rotary)
    weights = separate(mot)
    samples = [
        oracle_sample({name: streams[name][i] for name in names}, weights, mask=mask, positions=positions, mot=mot)
        for i in range(2)
    ]
    expected = {name: torch.stack([sample[name] for sample in samples]) for name in names}

    assert list(actual) == list(names)
    inputs = [*streams.values(), *dict(mot.named_parameters()).values()]
    seeds = {name: torch.randn_like(x) for name, x in expected.items()}
    theirs = torch.autograd.grad(sum((expected[n] * seeds[n]).sum() for n in names), inputs)
    ours = torch.autograd.grad(sum((actual[n] * seeds[n]).sum() for n in names), inputs)
    for name in names:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-12)
    for label, our, their in zip([*names, *dict(mot.named_parameters())], ours, theirs, strict=True):
        assert their.abs().max() > 1e-6, f"nothing flows into {label}, so nothing is compared"
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-11 * float(their.abs().max() + 1), msg=label)
