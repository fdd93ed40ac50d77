"""The joint path against a slow oracle in float64: plain loops over samples, heads, tokens and pairs of features."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

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


def turn(x: Tensor, positions: list[int], *, rotated: int) -> Tensor:
    """Rotate each pair of the first features as a complex number."""
    half = rotated // 2
    pairs = torch.complex(x[..., :half], x[..., half:rotated])
    angles = [[p * BASE ** (-2 * j / rotated) for j in range(half)] for p in positions]
    turned = pairs * torch.exp(1j * torch.tensor(angles, dtype=torch.float64, device=x.device))
    return torch.cat([turned.real, turned.imag, x[..., rotated:]], dim=-1)


@dataclass
class Case:
    """What a call is given: the sequence piece by piece, and masks and positions layer by layer."""

    names: tuple[str, ...] = ("und", "gen", "act")
    options: dict[str, object] = field(default_factory=dict)  # of the MoT
    gated: bool = False  # whether the experts have an output gate
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of experts that are not in all of them
    masks: tuple[Tensor, ...] = ()
    positions: tuple[list[int] | None, ...] = ()

    @property
    def lengths(self) -> list[int]:
        return [LENGTHS[name] - 2 * self.names[:place].count(name) for place, name in enumerate(self.names)]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """One score at a time: (heads, query, head_dim) and (kv_heads, key, head_dim) to (query, heads * head_dim)."""
    rows = []
    for i in range(query.shape[1]):
        seen = [j for j in range(key.shape[1]) if mask[i, j]]
        heads = []
        for head in range(len(query)):
            shared = head // (len(query) // len(key))
            scores = torch.stack([query[head, i] @ key[shared, j] / math.sqrt(query.shape[-1]) for j in seen])
            share = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
            heads.append(sum(share[n] * value[shared, j] for n, j in enumerate(seen)))
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def projected(x: Tensor, weights: Weights, prefix: str, mot: MoT, kind: dict[str, object]) -> dict[str, Tensor]:
    """Queries, keys, values and gates of one piece."""
    normed = norm(x, weights, prefix + "attention_norm", kind=kind["norm"], eps=kind["eps"])
    found = {}
    for what, heads in (("query", mot.heads), ("key", mot.kv_heads), ("value", mot.kv_heads)):
        found[what] = project(normed, weights, f"{prefix}attention.{what}", heads)
        if f"{prefix}attention.{what}_norm.weight" in weights:
            found[what] = norm(
                found[what], weights, f"{prefix}attention.{what}_norm", kind=kind["norm"], eps=kind["eps"]
            )
    gate = f"{prefix}attention.gate"
    if f"{gate}.weight" in weights:
        found["gate"] = 1 / (1 + torch.exp(-normed @ weights[f"{gate}.weight"].T - weights.get(f"{gate}.bias", 0)))
    else:
        found["gate"] = torch.ones(len(x), mot.heads * mot.head_dim, dtype=x.dtype, device=x.device)
    return found


def oracle_sample(pieces: list[Tensor], weights: Weights, case: Case, mot: MoT) -> list[Tensor]:
    for index in range(mot.depth):
        prefixes = {  # of the experts that are present
            name: f"experts.{name}.layers.{case.layers.get(name, range(mot.depth)).index(index)}."
            for name in case.names
            if index in case.layers.get(name, range(mot.depth))
        }
        present = [place for place, name in enumerate(case.names) if name in prefixes]
        parts = [
            projected(pieces[place], weights, prefixes[case.names[place]], mot, KINDS[case.names[place]])
            for place in present
        ]
        query, key, value = (torch.cat([part[what] for part in parts], dim=1) for what in ("query", "key", "value"))
        positions = case.positions[index]
        if positions is not None:
            query, key = (turn(x, positions[: x.shape[1]], rotated=mot.rotated) for x in (query, key))
        attended = attend(query, key, value, case.masks[index]) * torch.cat([part["gate"] for part in parts])
        for place, part in zip(present, attended.split([len(pieces[place]) for place in present]), strict=True):
            name = case.names[place]
            prefix, kind = prefixes[name], KINDS[name]
            x = pieces[place] + part @ weights[prefix + "attention.output.weight"].T
            normed = norm(x, weights, prefix + "mlp_norm", kind=kind["norm"], eps=kind["eps"])
            pieces[place] = x + mlp(normed, weights, prefix + "mlp", activation=kind["activation"])
    return [
        norm(x, weights, f"experts.{name}.norm", kind=KINDS[name]["norm"], eps=KINDS[name]["eps"])
        for name, x in zip(case.names, pieces, strict=True)
    ]


CASES = {
    "in order": Case(),
    "in another order": Case(names=("act", "und")),
    "alone": Case(names=("gen",)),
    "coming back": Case(names=("und", "gen", "und", "act", "gen")),
    "with output gates": Case(names=("und", "gen"), gated=True),
    "with few features rotated": Case(names=("und", "act"), options={"rotated": 4}),
    "in fewer layers": Case(layers={"gen": (0, 2), "act": (2,)}),
    "coming back in fewer layers": Case(names=("und", "und", "gen", "gen"), layers={"gen": (1,)}),
}


def filled(case: Case, depth: int, *, per_layer: bool, device: torch.device) -> Case:
    """The case with its masks and positions: pieces see themselves, earlier ones, and something irregular."""
    owners = torch.tensor([place for place, length in enumerate(case.lengths) for _ in range(length)], device=device)
    mask = owners[None, :] <= owners[:, None]
    if not case.layers:  # who is in fewer layers is seen by none that is in more
        mask |= torch.eye(len(owners), dtype=torch.bool, device=device).roll(1, 0)
    apart = mask & (owners[None, :] == owners[:, None])
    positions = [3 * i + i % 2 for i in range(len(owners))]
    return replace(
        case,
        masks=tuple(apart if per_layer and index == 1 else mask for index in range(depth)),
        positions=tuple(None if per_layer and index == 1 else positions for index in range(depth)),
    )


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_joint_values_and_every_gradient_equal_the_oracle(
    *,
    case: Case,
    per_layer: bool,
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    names, depth = tuple(dict.fromkeys(case.names)), 3 if case.layers else 2
    mot = make_mot(
        device=device,
        depth=depth,
        depths={name: len(own) for name, own in case.layers.items()},
        names=names,
        output_gate=case.gated,
        at=case.layers,
        **case.options,
    )
    case = filled(case, depth, per_layer=per_layer, device=device)
    drawn = [make_streams(mot, dict.fromkeys(names, length), seed=length) for length in case.lengths]
    sequence = [(name, streams[name].requires_grad_()) for name, streams in zip(case.names, drawn, strict=True)]
    attentions = [make_attention(mask) for mask in case.masks]
    rotaries = [
        positions
        and rotary_angles(
            torch.tensor(positions, device=device)[None], head_dim=mot.rotated, base=BASE, dtype=torch.float64
        )
        for positions in case.positions
    ]

    repeats = len(names) < len(case.names)
    actual = mot(
        sequence if repeats else dict(sequence),
        attention=attentions if per_layer else attentions[0],
        rotary=rotaries if per_layer else rotaries[0],
    )
    found = actual if repeats else list(actual.items())
    assert [name for name, _ in found] == list(case.names)

    weights = separate(mot)
    samples = [oracle_sample([x[i] for _, x in sequence], weights, case, mot) for i in range(2)]
    expected = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    inputs = [*(x for _, x in sequence), *dict(mot.named_parameters()).values()]
    seeds = [torch.randn_like(x) for x in expected]
    theirs = torch.autograd.grad(sum((x * seed).sum() for x, seed in zip(expected, seeds, strict=True)), inputs)
    ours = torch.autograd.grad(sum((x * seed).sum() for (_, x), seed in zip(found, seeds, strict=True)), inputs)
    for (_, x), y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
    for label, our, their in zip([*case.names, *dict(mot.named_parameters())], ours, theirs, strict=True):
        # Without rotation, what is added to all keys changes no share.
        silent = per_layer and "layers.1." in label and label.endswith("key_norm.bias")
        assert silent or their.abs().max() > 1e-6, f"nothing flows into {label}, so nothing is compared"
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-11 * float(their.abs().max() + 1), msg=label)
