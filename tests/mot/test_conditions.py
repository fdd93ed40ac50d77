"""Norms driven by a condition: π0.5's recorded numbers, adaLN-Zero in plain float64, and every path of a call."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from moteur.mot import ConditionedNorm, Expert, MoT, expert_state_dict, rotary_angles
from moteur.mot.layers import RMSNorm
from moteur.mot.mot import AttentionFn
from moteur.runtime.kernels import HypotNorm, PackedLinear, PackedMLP, _inside, _pack

SHARED = {"depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
WIDTH = 10
LENGTHS = {"und": 5, "act": 3}


def shaken(module: nn.Module) -> nn.Module:
    """Give every weight, those that start at zero too, a value that matters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(parameter))
    return module


def conditioned_mot(
    device: torch.device, dtype: torch.dtype = torch.float64, *, depth: int = 2, **options: bool
) -> MoT:
    """A plain expert, and one whose norms are driven by a condition."""
    torch.manual_seed(0)
    made = {"device": device, "dtype": dtype, **SHARED, "depth": depth}
    und = Expert(dim=24, mlp_dim=40, qk_norm=True, **made)
    act = Expert(dim=12, mlp_dim=28, qk_norm=True, condition=WIDTH, residual_gate=True, **made)
    return shaken(MoT({"und": und, "act": act}, **options))


def drawn(*shape: int, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


# The recorded π0.5

ROOTS = {
    "vlm": "model.paligemma_with_expert.paligemma.model.language_model.",
    "act": "model.paligemma_with_expert.gemma_expert.model.",
}


def gradient(expert: Expert, name: str) -> Tensor | None:
    """Gradient of one projection, as rows of the joined one that holds it."""
    *lead, part, kind = name.split(".")
    first, each = expert.heads * expert.head_dim, expert.kv_heads * expert.head_dim
    place = {"query": (0, first), "key": (first, first + each), "value": (first + each, first + 2 * each)}
    if part in place:
        whole = expert.get_parameter(".".join([*lead, "qkv", kind])).grad
        return None if whole is None else whole[slice(*place[part])]
    if part in {"gate", "up"}:
        whole = expert.get_parameter(".".join([*lead, "gate_up", kind])).grad
        return None if whole is None else whole.chunk(2)[part == "up"]
    return expert.get_parameter(name).grad


@pytest.fixture(scope="module")
def recorded(golden: Path) -> tuple[MoT, Tensor, Tensor]:
    """The recorded π0.5: its two experts, and the read-out of the actions."""
    dims = json.loads((golden / "pi05" / "dims.json").read_text())
    stored = load_file(golden / "pi05" / "model.safetensors")
    shared = {name: dims[name] for name in ("depth", "heads", "kv_heads", "head_dim")} | {"activation": "geglu_tanh"}
    mot = MoT(
        {
            "vlm": Expert(dim=dims["vlm_dim"], mlp_dim=dims["vlm_mlp"], norm="rms_unit_offset", **shared),
            "act": Expert(
                dim=dims["act_dim"], mlp_dim=dims["act_mlp"], condition=dims["act_dim"], residual_gate=True, **shared
            ),
        }
    )
    for name, root in ROOTS.items():
        mot.expert(name).load_state_dict(expert_state_dict(stored, prefix=root))
    return mot, stored["model.action_out_proj.weight"], stored["model.action_out_proj.bias"]


@pytest.mark.parametrize("name", ["all_cameras", "dropped_camera"])
def test_the_recorded_experts_of_pi05_give_its_numbers_and_gradients(
    name: str, recorded: tuple[MoT, Tensor, Tensor], golden: Path
) -> None:
    mot, weight, bias = recorded
    case = load_file(golden / "pi05" / f"{name}.safetensors")
    visible, valid = case["train.visible"].bool(), case["train.valid"].bool()

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = visible[:, None, -query.shape[2] :] | ~valid[:, None, -query.shape[2] :, None]  # padding: any value
        return F.scaled_dot_product_attention(query, key, value, attn_mask=rows, enable_gqa=True)

    rotary = rotary_angles(case["train.positions"].long(), head_dim=mot.head_dim, base=10_000.0)
    streams = {"vlm": case["train.vlm_in"], "act": case["train.act_in"]}
    conditions = {"act": case["train.condition"]}
    mot.zero_grad()
    out = mot(streams, attention=attention, rotary=rotary, conditions=conditions)
    torch.testing.assert_close(out["act"], case["train.act_out"], rtol=0, atol=1e-5)
    real = valid[:, : streams["vlm"].shape[1]]
    torch.testing.assert_close(out["vlm"][real], case["train.vlm_out"][real], rtol=0, atol=1e-5)

    losses = (F.linear(out["act"], weight, bias) - (case["in.noise"] - case["in.actions"])).square()
    torch.testing.assert_close(losses, case["train.losses"], rtol=1e-5, atol=1e-5)
    losses.mean().backward()
    for expert, root in ROOTS.items():
        theirs = expert_state_dict(case, prefix=f"grad.{root}")
        assert sum("modulation" in label for label in theirs) == (4 if expert == "act" else 0)
        for label, grad in theirs.items():
            mine = gradient(mot.expert(expert), label)
            assert mine is not None, label
            torch.testing.assert_close(mine, grad, rtol=0, atol=2e-5 * float(grad.abs().max()), msg=label)


# adaLN-Zero in plain float64


def adaln_zero(x: Tensor, c: Tensor, weights: dict[str, Tensor], *, kind: str, gate: bool, mot: MoT) -> Tensor:
    """A diffusion transformer's blocks for one sample: x (seq, dim), c (seq, condition), every token its condition."""
    dim, eps = x.shape[-1], 1e-6

    def modulated(x: Tensor, prefix: str) -> tuple[Tensor, Tensor]:
        parts = c @ weights[f"{prefix}.modulation.weight"].T + weights[f"{prefix}.modulation.bias"]
        if kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        gates = parts[:, 2 * dim :] if gate else torch.ones_like(x)
        return x * (1 + parts[:, :dim]) + parts[:, dim : 2 * dim], gates

    def heads(y: Tensor, count: int) -> Tensor:
        return torch.stack(y.split(y.shape[-1] // count, dim=-1))

    for index in range(mot.depth):
        prefix = f"experts.act.layers.{index}"
        y, gates = modulated(x, f"{prefix}.attention_norm")
        rows = [mot.heads * mot.head_dim, *[mot.kv_heads * mot.head_dim] * 2]
        query, key, value = (y @ weights[f"{prefix}.attention.qkv.weight"].T).split(rows, dim=-1)
        query, key, value = heads(query, mot.heads), heads(key, mot.kv_heads), heads(value, mot.kv_heads)
        key, value = (z.repeat_interleave(mot.heads // mot.kv_heads, dim=0) for z in (key, value))
        shares = (query @ key.mT / math.sqrt(mot.head_dim)).softmax(-1)
        attended = torch.cat(list(shares @ value), dim=-1)
        x = x + gates * (attended @ weights[f"{prefix}.attention.output.weight"].T)
        y, gates = modulated(x, f"{prefix}.mlp_norm")
        first, second = (y @ weights[f"{prefix}.mlp.gate_up.weight"].T).chunk(2, dim=-1)
        x = x + gates * ((first * first.sigmoid() * second) @ weights[f"{prefix}.mlp.down.weight"].T)
    return modulated(x, "experts.act.norm")[0]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms", "rms_unit_offset"])
@pytest.mark.parametrize("per_token", [False, True])
def test_a_conditioned_expert_is_a_diffusion_transformer_in_values_and_gradients(
    *, norm: str, gate: bool, per_token: bool, device: torch.device
) -> None:
    act = Expert(
        dim=12, mlp_dim=28, norm=norm, condition=WIDTH, residual_gate=gate, device=device, dtype=torch.float64, **SHARED
    )
    mot = shaken(MoT({"act": act}))
    x = drawn(2, 3, 12, device=device).requires_grad_()
    c = drawn(*(2, 3, WIDTH) if per_token else (2, WIDTH), device=device).requires_grad_()
    weights = dict(mot.named_parameters())

    def everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    actual = mot({"act": x}, attention=everything, conditions={"act": c})["act"]
    rows = c if per_token else c[:, None].expand(-1, 3, -1)
    expected = torch.stack(
        [adaln_zero(*pair, weights, kind=norm, gate=gate, mot=mot) for pair in zip(x, rows, strict=True)]
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    seed = drawn(2, 3, 12, device=device) + 1
    inputs = [x, c, *weights.values()]
    ours = torch.autograd.grad((actual * seed).sum(), inputs)
    theirs = torch.autograd.grad((expected * seed).sum(), inputs)
    for label, our, their in zip(["tokens", "condition", *weights], ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-11 * float(their.abs().max() + 1), msg=label)
    assert all(grad.abs().max() > 1e-6 for grad in theirs)


@pytest.mark.parametrize("gate", [True, False])
def test_a_fresh_conditioned_expert_listens_to_nobody_and_a_gated_one_adds_nothing(gate: bool) -> None:
    expert = Expert(dim=12, mlp_dim=28, condition=WIDTH, residual_gate=gate, **SHARED)
    expert.reset_parameters()
    plain = Expert(dim=12, mlp_dim=28, **SHARED)
    plain.load_state_dict({name: expert.state_dict().get(name, x) for name, x in plain.state_dict().items()})
    x, c = torch.randn(2, 3, 12), torch.randn(2, WIDTH)
    out = MoT({"act": expert})({"act": x}, attention=lambda query, _key, _value: query, conditions={"act": c})["act"]
    if gate:
        torch.testing.assert_close(out, F.rms_norm(x, (12,), eps=1e-6), rtol=1e-6, atol=1e-6)
    else:
        same = MoT({"act": plain})({"act": x}, attention=lambda query, _key, _value: query)["act"]
        torch.testing.assert_close(out, same, rtol=1e-6, atol=1e-6)


# Every path of a call


@pytest.mark.parametrize("per_token", [False, True])
def test_a_table_made_once_for_all_times_stands_for_its_conditions(per_token: bool, device: torch.device) -> None:
    mot = conditioned_mot(device)
    tokens = {name: drawn(2, length, mot.expert(name).dim, device=device) for name, length in LENGTHS.items()}
    times = drawn(4, *([3] if per_token else []), WIDTH, device=device)
    table = mot.expert("act").modulation_table(times)
    assert table.shape == (5, 4, 3 if per_token else 1, 36)
    for step in range(4):
        both = [
            mot(tokens, attention=lambda query, _key, _value: query, conditions={"act": given})
            for given in (times[step].expand(2, *times.shape[1:]), times[step : step + 1], table[:, step : step + 1])
        ]
        for name in LENGTHS:
            for other in both[1:]:
                torch.testing.assert_close(other[name], both[0][name], rtol=1e-12, atol=1e-13)


def test_tokens_of_an_expert_that_comes_back_have_their_own_conditions(
    make_attention: Callable[[Tensor], AttentionFn], device: torch.device
) -> None:
    """Under a mask by pieces, each piece with its conditions is a call of its own over the cache of those before."""
    mot = conditioned_mot(device)
    pieces = [
        (name, drawn(2, length, mot.expert(name).dim, device=device))
        for name, length in (("act", 3), ("und", 5), ("act", 2))
    ]
    conditions = drawn(2, 5, WIDTH, device=device)
    place = torch.tensor([0] * 3 + [1] * 5 + [2] * 2, device=device)
    attention = make_attention(place[None] <= place[:, None])
    with torch.no_grad():
        joint = mot(pieces, attention=attention, conditions={"act": conditions})
        cache = mot.new_cache(batch=2, capacity=10)
        for (name, x), (_, expected), own in zip(pieces, joint, (slice(3), None, slice(3, 5)), strict=True):
            given = {} if own is None else {"act": conditions[:, own]}
            found = mot({name: x}, attention=attention, conditions=given, cache=cache)[name]
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
            cache = cache.extended(x.shape[1])


def test_cached_calls_equal_the_joint_call(
    make_attention: Callable[[Tensor], AttentionFn], make_mask: Callable[..., Tensor], device: torch.device
) -> None:
    mot = conditioned_mot(device)
    tokens = {name: drawn(2, length, mot.expert(name).dim, device=device) for name, length in LENGTHS.items()}
    conditions = {"act": drawn(2, 3, WIDTH, device=device)}
    attention = make_attention(make_mask(LENGTHS, device=device))
    with torch.no_grad():
        joint = mot(tokens, attention=attention, conditions=conditions)
        cache = mot.new_cache(batch=2, capacity=8)
        mot({"und": tokens["und"]}, attention=attention, cache=cache, outputs=())
        cache = cache.extended(5)
        act = mot({"act": tokens["act"]}, attention=attention, cache=cache, conditions=conditions)["act"]
    torch.testing.assert_close(act, joint["act"], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("way", ["checkpointed", "copied", "compiled checkpointed", "compiled with its table"])
@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_values_and_gradients_survive_checkpointing_copying_and_compilation(way: str, device: torch.device) -> None:
    depth = 1 if "compiled" in way else 2  # compilation takes its time
    plain = conditioned_mot(device, depth=depth)
    mot = conditioned_mot(device, depth=depth, activation_checkpointing="checkpointed" in way)
    if way == "copied":
        mot = copy.deepcopy(mot)

    def run(tokens: dict[str, Tensor], *, attention: AttentionFn, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        if "table" in way:
            conditions = {"act": mot.expert("act").modulation_table(conditions["act"])}
        return mot(tokens, attention=attention, conditions=conditions)

    if "compiled" in way:
        run = torch.compile(run, fullgraph=True, backend="eager")

    def everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    results = []
    for model, call in ((plain, plain), (mot, run)):
        tokens = {
            name: drawn(2, length, model.expert(name).dim, device=device).requires_grad_()
            for name, length in LENGTHS.items()
        }
        condition = drawn(2, WIDTH, device=device).requires_grad_()
        out = call(tokens, attention=everything, conditions={"act": condition})
        sum(x.square().sum() for x in out.values()).backward()
        grads = {"condition": condition.grad} | {
            name: x.grad for name, x in [*tokens.items(), *model.named_parameters()]
        }
        results.append((out, grads))
    (expected, expected_grads), (actual, actual_grads) = results
    for name in LENGTHS:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-13)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(actual_grads[name], grad, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_layers_compiled_apart_take_conditions_and_tables(device: torch.device) -> None:
    plain, mot = conditioned_mot(device, depth=1), conditioned_mot(device, depth=1)
    mot.compile_layers(backend="eager")
    tokens = {name: drawn(2, length, mot.expert(name).dim, device=device) for name, length in LENGTHS.items()}
    condition = drawn(2, WIDTH, device=device)
    with torch.no_grad():
        for given in (condition, mot.expert("act").modulation_table(condition)):
            expected, actual = (
                each(tokens, attention=lambda query, _key, _value: query, conditions={"act": given})
                for each in (plain, mot)
            )
            for name in LENGTHS:
                torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wide_norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_narrow_model_errs_by_its_own_rounding(*, wide_norms: bool, dtype: torch.dtype, device: torch.device) -> None:
    mot = conditioned_mot(device, dtype)
    if wide_norms:
        for module in mot.modules():
            if isinstance(module, RMSNorm | ConditionedNorm):
                module.float()
    exact = conditioned_mot(device)
    exact.load_state_dict(mot.state_dict())
    tokens = {
        name: drawn(2, length, mot.expert(name).dim, device=device, dtype=dtype) for name, length in LENGTHS.items()
    }
    condition = drawn(2, WIDTH, device=device, dtype=dtype)

    def everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    with torch.no_grad():
        out = mot(tokens, attention=everything, conditions={"act": condition})
        wide = exact(
            {name: x.double() for name, x in tokens.items()},
            attention=everything,
            conditions={"act": condition.double()},
        )
    for name, x in out.items():
        assert x.dtype == dtype
        error = (x.double() - wide[name]).abs().max() / wide[name].abs().max()
        assert error < 20 * torch.finfo(dtype).eps, f"{name}: {error / torch.finfo(dtype).eps:.1f} eps"


def test_fast_kernels_leave_conditioned_norms_what_they_are(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("kernels are packed on the CPU alone")
    mot = conditioned_mot(device, torch.float32)
    tokens = {
        name: drawn(2, length, mot.expert(name).dim, device=device, dtype=torch.float32)
        for name, length in LENGTHS.items()
    }
    conditions = {"act": drawn(2, WIDTH, device=device, dtype=torch.float32)}
    with torch.no_grad():
        expected = mot(tokens, attention=lambda query, _key, _value: query, conditions=conditions)
        for parent, name, child in _inside(mot):
            if type(child) is RMSNorm:
                setattr(parent, name, HypotNorm(child))
        _pack(mot, rows=3, always=True)
        found = mot(tokens, attention=lambda query, _key, _value: query, conditions=conditions)
    kinds = [type(module) for module in mot.expert("act").modules()]
    assert kinds.count(ConditionedNorm) == kinds.count(nn.Linear) == 5
    assert kinds.count(PackedMLP) == 2
    assert kinds.count(PackedLinear) == 2 * (2 + 3)
    for name in LENGTHS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_the_names_of_a_conditioned_experts_weights_say_what_drives_them() -> None:
    expert = Expert(dim=12, mlp_dim=28, condition=WIDTH, residual_gate=True, device="meta", **{**SHARED, "depth": 1})
    shapes = {name: tuple(x.shape) for name, x in expert.state_dict().items() if "norm" in name}
    assert shapes == {
        f"{norm}.modulation.{kind}": (36, WIDTH)[: 2 if kind == "weight" else 1]
        for norm in ("layers.0.attention_norm", "layers.0.mlp_norm", "norm")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, r"conditions: expected one for each of \['act'\], got \[\]"),
        ({"und": (2, 10), "act": (2, 10)}, r"conditions: expected one for each of \['act'\], got \['und', 'act'\]"),
        ({"act": (10,)}, r"conditions: expected for act \(batch, 10\), .* got \(10,\)"),
        ({"act": (2, 9)}, r"got \(2, 9\)"),
        ({"act": (3, 10)}, r"with batch 2 or 1 and seq 3 or 1, got \(3, 10\)"),
        ({"act": (2, 2, 10)}, r"got \(2, 2, 10\)"),
        ({"act": (5, 2, 1, 24)}, r"a table \(5, batch, seq, 36\), .* got \(5, 2, 1, 24\)"),
        ({"act": (4, 2, 1, 36)}, r"got \(4, 2, 1, 36\)"),
        ({"act": (5, 3, 1, 36)}, r"got \(5, 3, 1, 36\)"),
    ],
)
def test_conditions_that_do_not_fit_are_an_error(conditions: dict[str, tuple[int, ...]], message: str) -> None:
    mot = conditioned_mot(torch.device("cpu"))
    tokens = {name: torch.zeros(2, length, mot.expert(name).dim) for name, length in LENGTHS.items()}
    given = {name: torch.zeros(shape) for name, shape in conditions.items()}
    with pytest.raises(ValueError, match=message):
        mot(tokens, attention=lambda query, _key, _value: query, conditions=given)


def test_a_condition_never_makes_one_token_or_one_sample_many() -> None:
    mot = conditioned_mot(torch.device("cpu"))
    for shape in ((2, WIDTH), (1, 3, WIDTH)):
        with pytest.raises(ValueError, match="with batch 1 or 1 and seq 1 or 1"):
            mot(
                {"act": torch.zeros(1, 1, 12)},
                attention=lambda query, _key, _value: query,
                conditions={"act": torch.zeros(shape)},
            )


def test_a_residual_gate_without_a_condition_is_an_error() -> None:
    with pytest.raises(ValueError, match="residual_gate: expected False without a condition, got True"):
        Expert(dim=12, mlp_dim=28, residual_gate=True, **SHARED)
