"""Precisions, devices, weights' names and how weights start."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moteur.mot import Expert, MoT, rotary_angles
from moteur.mot.layers import LayerNorm, RMSNorm, make_norm
from moteur.mot.mot import AttentionFn

SIZES = {"dim": 24, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_dim": 40}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide_norms", [False, True])
def test_every_precision_comes_back_and_errs_by_its_own_rounding(
    *,
    dtype: torch.dtype,
    wide_norms: bool,
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    exact_mot = make_mot(device=device)
    mot = make_mot(device=device).to(dtype)
    if wide_norms:
        for module in mot.modules():
            if isinstance(module, RMSNorm | LayerNorm):
                module.to(torch.promote_types(dtype, torch.float32))
    # The exact model starts from what the narrow one holds, so only the rounding inside a call is compared.
    exact_mot.load_state_dict(mot.state_dict())
    streams = make_streams(mot)
    rotary = rotary_angles(torch.arange(12, device=device)[None], head_dim=8, base=100.0)
    attention = make_attention(make_mask(device=device))
    with torch.no_grad():
        exact = exact_mot({name: x.double() for name, x in streams.items()}, attention=attention, rotary=rotary)
        joint = mot(streams, attention=attention, rotary=rotary)
        cache = mot.new_cache(batch=2, capacity=12)
        cached = {}
        for name, x in streams.items():
            piece = tuple(table[:, cache.length : cache.length + x.shape[1]] for table in rotary)
            cached |= mot({name: x}, attention=attention, rotary=piece, cache=cache)
            cache = cache.extended(x.shape[1])
    for out in (joint, cached):
        for name, x in out.items():
            assert x.dtype == dtype
            # About ten roundings in a row on each of two layers, on outputs of order 1, amplified by the attention.
            error = (x.double() - exact[name]).abs().max() / exact[name].abs().max()
            assert error < 20 * torch.finfo(dtype).eps, f"{name}: {error / torch.finfo(dtype).eps:.1f} eps"


@pytest.mark.parametrize("kind", ["rms", "rms_unit_offset", "layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_norm_of_half_precision_tokens_rounds_once(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    norm = make_norm(kind, 64, eps=1e-6, device=device)
    with torch.no_grad():
        norm.weight.normal_()
    x = 30 * torch.randn(5, 64, device=device).to(dtype)
    exact = make_norm(kind, 64, eps=1e-6, device=device, dtype=torch.float64)
    exact.load_state_dict(norm.state_dict())
    y = norm(x)
    assert (y.dtype, norm.weight.dtype) == (dtype, torch.float32)
    half_a_unit = exact(x.double()).abs() * torch.finfo(dtype).eps / 2
    assert ((y.double() - exact(x.double())).abs() <= half_a_unit + 1e-5).all()


@pytest.mark.parametrize("kind", ["rms", "rms_unit_offset", "layer"])
def test_a_float64_norm_is_computed_in_float64(kind: str, device: torch.device) -> None:
    x = torch.randn(5, 64, device=device, dtype=torch.float64)
    y = make_norm(kind, 64, eps=1e-6, device=device, dtype=torch.float64)(x)
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y, expected, rtol=0, atol=64 * 2**-52)  # the mean of 64 numbers of order 1


def test_the_gain_of_an_rms_norm_is_its_weight_and_one_more_only_where_asked(device: torch.device) -> None:
    x = torch.randn(5, 8, device=device, dtype=torch.float64)
    weight = torch.linspace(-1, 2, 8, device=device, dtype=torch.float64)
    unit = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for options, gain in (({}, weight), ({"unit_offset": False}, weight), ({"unit_offset": True}, 1 + weight)):
        norm = RMSNorm(8, eps=1e-6, dtype=torch.float64, device=device, **options)
        norm.load_state_dict({"weight": weight})
        torch.testing.assert_close(norm(x), unit * gain, rtol=0, atol=1e-14)


def test_autocast_runs_and_its_cache_takes_the_autocast_dtype(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device, dtype=torch.float32)
    streams, attention = make_streams(mot), make_attention(make_mask(device=device))
    exact = mot(streams, attention=attention)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        joint = mot(streams, attention=attention, outputs=("und", "act"))
        cache = mot.new_cache(batch=2, capacity=12, dtype=torch.bfloat16)
        cached = mot(streams, attention=attention, cache=cache)
    for name, x in joint.items():
        assert ((x - exact[name]).abs().max() / exact[name].abs().max()) < 20 * torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(cached[name], x, rtol=0.05, atol=0.05)  # same roundings up to the order of sums


def test_a_model_built_on_meta_allocates_nothing_and_starts_when_told() -> None:
    experts = {"given": Expert(**SIZES, device="meta")}
    with torch.device("meta"):
        experts["ambient"] = Expert(**SIZES, qk_norm=True, qkv_bias=True, norm="layer", activation="gelu_tanh")
    mot = MoT(experts)
    assert {x.device.type for x in mot.state_dict().values()} == {"meta"}
    mot.to_empty(device="cpu")
    for name in mot.experts:
        torch.manual_seed(3)
        mot.expert(name).reset_parameters()
    torch.manual_seed(3)
    drawn = Expert(**{**SIZES, "depth": 2})
    drawn.reset_parameters()
    torch.manual_seed(3)
    drawn.reset_parameters()
    assert all(torch.equal(x, y) for x, y in zip(mot.expert("given").parameters(), drawn.parameters(), strict=True))


@pytest.mark.parametrize("norm", ["rms", "rms_unit_offset", "layer"])
def test_weights_start_as_stated_and_reproducibly(norm: str) -> None:
    sizes = {**SIZES, "dim": 96, "mlp_dim": 200}
    torch.manual_seed(0)
    expert = Expert(**sizes, norm=norm, qk_norm=True, qkv_bias=True)
    torch.manual_seed(0)
    again = Expert(**sizes, norm=norm, qk_norm=True, qkv_bias=True)
    for (name, x), y in zip(expert.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(x, y)
        if x.ndim == 2:
            # Sample deviation of n normal numbers errs by about 1 / sqrt(2 n).
            assert abs(x.std() / 0.02 - 1) < 5 / (2 * x.numel()) ** 0.5, name
            assert abs(x.mean()) < 5 * 0.02 / x.numel() ** 0.5, name
        else:
            gain = 0.0 if norm == "rms_unit_offset" or name.endswith("bias") else 1.0
            assert torch.equal(x, torch.full_like(x, gain)), name


def test_the_names_of_the_weights_read_like_the_architecture() -> None:
    shared = {"depth": 1, "heads": 2, "kv_heads": 1, "head_dim": 4, "device": "meta"}
    mot = MoT(
        {
            "und": Expert(dim=8, mlp_dim=12, qk_norm=True, **shared),
            "act": Expert(
                dim=6, mlp_dim=10, qkv_bias=True, norm="layer", activation="gelu", output_gate=True, **shared
            ),
        }
    )
    assert {name: tuple(x.shape) for name, x in mot.state_dict().items()} == {
        "experts.und.layers.0.attention_norm.weight": (8,),
        "experts.und.layers.0.attention.qkv.weight": (8 + 4 + 4, 8),
        "experts.und.layers.0.attention.output.weight": (8, 8),
        "experts.und.layers.0.attention.query_norm.weight": (4,),
        "experts.und.layers.0.attention.key_norm.weight": (4,),
        "experts.und.layers.0.mlp_norm.weight": (8,),
        "experts.und.layers.0.mlp.gate_up.weight": (12 + 12, 8),
        "experts.und.layers.0.mlp.down.weight": (8, 12),
        "experts.und.norm.weight": (8,),
        "experts.act.layers.0.attention_norm.weight": (6,),
        "experts.act.layers.0.attention_norm.bias": (6,),
        "experts.act.layers.0.attention.qkv.weight": (8 + 4 + 4, 6),
        "experts.act.layers.0.attention.qkv.bias": (8 + 4 + 4,),
        "experts.act.layers.0.attention.output.weight": (6, 8),
        "experts.act.layers.0.attention.gate.weight": (8, 6),
        "experts.act.layers.0.attention.gate.bias": (8,),
        "experts.act.layers.0.mlp_norm.weight": (6,),
        "experts.act.layers.0.mlp_norm.bias": (6,),
        "experts.act.layers.0.mlp.up.weight": (10, 6),
        "experts.act.layers.0.mlp.down.weight": (6, 10),
        "experts.act.norm.weight": (6,),
        "experts.act.norm.bias": (6,),
    }


@pytest.mark.parametrize(
    ("activation", "nonlinearity"),
    [
        ("swiglu", nn.SiLU()),
        ("geglu", nn.GELU()),
        ("geglu_tanh", nn.GELU(approximate="tanh")),
        ("gelu", nn.GELU()),
        ("gelu_tanh", nn.GELU(approximate="tanh")),
    ],
)
def test_each_activation_is_the_one_its_name_says(
    activation: str, nonlinearity: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    mlp = Expert(**SIZES, activation=activation, device=device, dtype=torch.float64).layer(0).mlp
    x = 100 * torch.randn(2, 3, 24, device=device, dtype=torch.float64)
    if activation.startswith("gelu"):
        hidden = nonlinearity(x @ mlp.up.weight.T)
    else:
        gate, up = mlp.gate_up.weight.chunk(2)
        hidden = nonlinearity(x @ gate.T) * (x @ up.T)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.T, rtol=1e-12, atol=1e-12)


def test_a_state_dict_with_separate_maps_gives_the_joined_ones() -> None:
    expert = Expert(**SIZES, qkv_bias=True)
    state = expert.state_dict()
    rows = [expert.heads * expert.head_dim, *[expert.kv_heads * expert.head_dim] * 2]
    separate: dict[str, Tensor] = {}
    for name, x in state.items():
        if ".qkv." in name:
            for part, values in zip(("query", "key", "value"), x.split(rows), strict=True):
                separate[name.replace(".qkv.", f".{part}.")] = values.clone()
        elif ".gate_up." in name:
            for part, values in zip(("gate", "up"), x.chunk(2), strict=True):
                separate[name.replace(".gate_up.", f".{part}.")] = values.clone()
        else:
            separate[name] = x.clone()
    other = Expert(**SIZES, qkv_bias=True)
    other.load_state_dict(separate)
    assert all(torch.equal(other.state_dict()[name], x) for name, x in state.items())
    del separate["layers.0.attention.key.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.0\.attention\.qkv\.weight"):
        other.load_state_dict(separate)
