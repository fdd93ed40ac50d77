"""Packed maps beside the plain ones; models whose maps are not plain; every expert that `mot` can build."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy_model import random_inputs, randomised, toy_config

from moteur.mot import MLP, Expert, MoT, RMSNorm
from moteur.recipes import InternVLAA1, use_released_precision
from moteur.runtime import InferenceSession, optimise
from moteur.runtime.kernels import (
    HypotNorm,
    PackedLinear,
    PackedMLP,
    _pack,
    _to_float8,
    fastest_dtype,
    measured,
    rows_of,
)

ACTIVATIONS = ["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh"]
NORMS = ["rms", "rms_unit_offset", "layer"]


def rounding(dtype: torch.dtype, terms: int) -> float:
    """What sums of so many products of numbers around one may differ by when they are added in another order."""
    return 8 * torch.finfo(dtype).eps * terms**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_a_packed_map_is_the_map_whatever_the_rows(dtype: torch.dtype, bias: bool, rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, 40, generator=draw).to(dtype) for size in (24, rows))
    shift = torch.randn(24, generator=draw).to(dtype) if bias else None
    packed = PackedLinear(weight, shift, rows=7)
    exact = nn.functional.linear(x.double(), weight.double(), None if shift is None else shift.double())
    torch.testing.assert_close(packed(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=rounding(dtype, 40))
    other = torch.randn(rows, 24, generator=draw).to(dtype)
    torch.testing.assert_close(
        packed.times(x, other).double(), exact * other, rtol=2 * torch.finfo(dtype).eps, atol=4 * rounding(dtype, 40)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_packed_network_is_the_network_for_every_activation(activation: str) -> None:
    plain = MLP(dim=24, mlp_dim=40, activation=activation)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    holder = nn.Sequential(copy.deepcopy(plain))
    _pack(holder, rows=9, always=True)
    assert isinstance(holder[0], PackedMLP)
    x = 3 * torch.randn(2, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(holder(x).double(), plain.double()(x.double()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_packed_network_is_the_network_of_a_vision_tower(approximate: str) -> None:
    plain = nn.Sequential(nn.Linear(24, 40), nn.GELU(approximate), nn.Linear(40, 24))
    holder = nn.Sequential(copy.deepcopy(plain), nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 24)))
    _pack(holder, rows=9, always=True)
    assert isinstance(holder[0], PackedMLP)
    assert [type(part) for part in holder[1]] == [PackedLinear, nn.Tanh, PackedLinear]
    x = 3 * torch.randn(2, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(holder[0](x).double(), plain.double()(x.double()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_session_takes_every_expert_that_mot_builds(norm: str, activation: str) -> None:
    config = toy_config()
    model = InternVLAA1(config)
    shared = {"depth": config.depth, "heads": config.heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim}
    model.mot = MoT(
        {
            name: Expert(
                dim=size.dim,
                mlp_dim=size.mlp_dim,
                norm=norm,
                activation=activation,
                qk_norm=name != "gen",
                qkv_bias=name == "act",
                output_gate=name != "act",
                eps=1e-3,
                **shared,
            )
            for name, size in config.experts.items()
        }
    )
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    inputs = random_inputs(config, 2, 6)
    noise = torch.randn(2, config.chunk, config.action_dim, generator=draw)
    expected = model.eval().act(inputs, noise=noise)
    for kernel in ("aten", "onednn"):
        session = InferenceSession(model, kernel=kernel)
        torch.testing.assert_close(session.act(inputs, noise=noise), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(session.imagine(inputs).latents, model.imagine(inputs).latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0, 1e4])
def test_a_norm_by_hypotenuse_is_the_rms_norm(dtype: torch.dtype, unit_offset: bool, scale: float) -> None:
    norm = RMSNorm(24, eps=1e-6, unit_offset=unit_offset, dtype=torch.promote_types(dtype, torch.float32))
    nn.init.normal_(norm.weight)
    x = (scale * torch.randn(2, 7, 24, dtype=torch.float64)).to(dtype)
    gain = norm.weight.detach().double() + unit_offset
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    found = HypotNorm(norm)(x)
    assert found.dtype == dtype
    # A norm, a hypotenuse, a division and a product, each rounded; then once more to the dtype of the tokens.
    eps = torch.finfo(dtype).eps / 2 + 6 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    torch.testing.assert_close(found.double(), exact, rtol=eps, atol=0)


class Adapted(nn.Module):
    """A linear map with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.5)
        nn.init.normal_(self.down.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x.to(self.base.weight.dtype)) + self.up(self.down(x.to(self.down.weight.dtype)))


@pytest.mark.parametrize("kernel", ["aten", "onednn"])
@pytest.mark.parametrize("place", ["attention.qkv", "attention.output", "mlp.gate_up", "mlp.down", "mlp"])
@pytest.mark.parametrize("how", ["adapter", "hook", "forward"])
def test_a_session_acts_with_adapters_hooks_and_replaced_maps(kernel: str, place: str, how: str) -> None:
    config = toy_config()
    model, inputs = randomised(config), random_inputs(config, 1, 8)
    noise = torch.randn(1, config.chunk, config.action_dim, generator=torch.Generator().manual_seed(1))
    before = model.act(inputs, noise=noise)
    for name in ("und", "gen", "act"):
        for index in range(config.depth):
            layer = model.mot.expert(name).layer(index)
            part = layer.get_submodule(place)
            if how == "adapter" and isinstance(part, nn.Linear):
                parent, leaf = place.rsplit(".", maxsplit=1)
                setattr(layer.get_submodule(parent), leaf, Adapted(part))
            elif how == "forward":
                part.forward = _doubling(part.forward)
            else:
                part.register_forward_hook(lambda _module, _args, output: 1.5 * output)
    expected = model.act(inputs, noise=noise)
    assert (expected - before).abs().max() > 1e-2
    found = InferenceSession(model, kernel=kernel).act(inputs, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _doubling(forward: object) -> object:
    return lambda x: 2 * forward(x)  # type: ignore[operator]


def test_rows_and_kernels_are_chosen_for_what_a_call_brings() -> None:
    config = toy_config()
    model = randomised(config)
    rows = rows_of(model)
    inputs = replace(random_inputs(config, 1, 1), attention_mask=None)
    context, _ = model.context(inputs, model.encode(inputs))
    assert rows["mot.experts.gen"] == context["gen"].tokens.shape[1]
    assert rows["mot.experts.act"] == config.chunk
    assert rows["mot.experts.und"] == context["und"].tokens.shape[1] - config.text_length + 16
    times = measured(3, 40, 24, torch.float32, torch.get_num_threads())
    assert set(times) == {"aten", "onednn"}
    assert min(times.values()) > 0
    assert fastest_dtype(model) == torch.float32
    assert fastest_dtype(randomised(config).bfloat16()) in {torch.float32, torch.bfloat16}
    assert fastest_dtype(randomised(config).double()) == torch.float64


def test_float8_rounds_each_row_to_its_own_scale() -> None:
    values = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 7.0])[:, None]
    rounded, scale = _to_float8(values)
    # e4m3 has three bits of mantissa: half a step is 2^-4 of the value; below 2^-6 of the largest steps are equal.
    error = (rounded.float() * scale - values).abs()
    assert (error <= values.abs() * 2**-4 + values.abs().amax(dim=1, keepdim=True) * 2**-15).all()


def test_packing_lets_go_of_each_map_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of a whole expert beside each other would take twice its memory."""
    stack = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 8), MLP(dim=8, mlp_dim=8, activation="swiglu")) for _ in range(20))
    )
    plain = [weakref.ref(module.weight) for module in stack.modules() if isinstance(module, nn.Linear)]
    most: list[int] = []
    make = PackedLinear.__init__

    def counted(packed: PackedLinear, *args: object, **options: object) -> None:
        most.append(sum(weight() is not None for weight in plain))
        make(packed, *args, **options)

    monkeypatch.setattr(PackedLinear, "__init__", counted)
    _pack(stack, rows=4, always=True)
    assert most[0] == len(plain) == 60  # a map, and the two of a gated network, of each of 20
    assert most == sorted(most, reverse=True)
    assert most[59] <= 21 + 2  # the networks go first: three packs each
    assert most[-1] <= 3


def test_number_formats_go_by_their_names_too() -> None:
    models = [randomised(toy_config()) for _ in range(4)]
    optimise(models[0], kernel="aten", dtype=torch.bfloat16)
    optimise(models[1], kernel="aten", dtype="bfloat16")
    use_released_precision(models[2], "bfloat16")
    use_released_precision(models[3])
    first, second, third, fourth = ({name: value.dtype for name, value in each.named_parameters()} for each in models)
    assert first == second
    assert third == fourth
    assert {*third.values()} == {torch.bfloat16, torch.float32}
    with pytest.raises(ValueError, match="dtype: expected one of"):
        optimise(randomised(toy_config()), dtype="float128")
