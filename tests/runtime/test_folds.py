"""Each rearrangement of the weights alone, against what it stands for."""

import pytest
import torch
import torch.nn.functional as F
from toy_model import randomised, toy_config

from moteur.flowmatch import ActionHead
from moteur.mot import Expert
from moteur.recipes.config import Qwen3VLVision
from moteur.runtime import choice, fuse_for_inference
from moteur.runtime.choice import Linears, fastest_dtype, measured
from moteur.runtime.experts import fuse_expert
from moteur.runtime.float8 import Float8Linear
from moteur.runtime.head import FusedHead
from moteur.runtime.layer import Angles, Norm, Rows, Slots
from moteur.runtime.linear import AtenLinear, OneDnnLinear
from moteur.runtime.vision import FixedGridTower
from moteur.tokenizers import ForesightHead

CPU = torch.device("cpu")
EPS = 1e-6


def linears(dtype: torch.dtype = torch.float32) -> Linears:
    return Linears("aten", device=CPU, dtype=dtype)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_norm_by_hypotenuse_is_the_rms_norm_down_to_tiny_inputs(scale: float) -> None:
    x, gain = scale * torch.randn(5, 24, dtype=torch.float64), torch.rand(24, dtype=torch.float64)
    floor = torch.tensor((24 * EPS) ** 0.5, dtype=torch.float64)
    expected = F.rms_norm(x, (24,), gain, EPS)
    torch.testing.assert_close(Norm(floor=floor, gain=gain * 24**0.5)(x), expected)
    torch.testing.assert_close(Norm(floor=floor, gain=None)(x) * gain * 24**0.5, expected)


@pytest.mark.parametrize("kind", [AtenLinear, OneDnnLinear])
@pytest.mark.parametrize("biased", [True, False])
def test_every_kernel_does_what_is_fused_into_it(kind: type, biased: bool) -> None:
    weight, bias = torch.randn(12, 8), torch.randn(12) if biased else None
    x, other = torch.randn(2, 3, 8), torch.randn(2, 3, 12)
    plain = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    map_ = kind(weight, bias) if kind is AtenLinear else kind(weight, bias, rows=6)

    def close(found: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)

    close(map_(x), plain)
    close(map_.plus(x, other), plain + other)
    close(map_.gelu(x, "none"), F.gelu(plain))
    close(map_.gelu(x, "tanh"), F.gelu(plain, approximate="tanh"))
    if isinstance(map_, OneDnnLinear):
        close(map_.silu(x), F.silu(plain))
        close(map_.times(x, other), plain * other)


@pytest.mark.parametrize("kernel", ["aten", "onednn"])
def test_a_gated_mlp_joined_or_packed_is_the_gated_mlp(kernel: str) -> None:
    build = Linears(kernel, device=CPU, dtype=torch.float32)
    gate, up, x = torch.randn(12, 8), torch.randn(12, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(build.gate(gate, up, rows=6)(x), F.silu(x @ gate.mT) * (x @ up.mT), rtol=0, atol=1e-5)


def test_float8_errs_by_a_few_parts_in_a_hundred_and_no_more() -> None:
    torch.manual_seed(0)
    weight, bias = 0.02 * torch.randn(256, 128), torch.randn(256)
    x, other = torch.randn(2, 9, 128).bfloat16(), torch.randn(2, 9, 256).bfloat16()
    map_ = Float8Linear(weight, bias.bfloat16())
    exact = F.linear(x.double(), weight.double())
    error = (map_(x).double() - bias.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    # e4m3 keeps 3 bits: uniform rounding errors of up to 1/16, two of them to a product.
    assert 0.005 < error < 0.05
    torch.testing.assert_close(map_.plus(x, other), map_(x) + other)
    torch.testing.assert_close(map_.gelu(x, "none"), F.gelu(map_(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("qk_norm", "bias"), [(True, False), (False, True)])
def test_a_fused_layer_is_the_layer(dtype: torch.dtype, qk_norm: bool, bias: bool) -> None:
    torch.manual_seed(1)
    sizes = {"dim": 24, "heads": 6, "kv_heads": 2, "head_dim": 8, "mlp_dim": 40}
    expert = Expert(depth=1, eps=EPS, qk_norm=qk_norm, qkv_bias=bias, **sizes)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    layer = expert.double().layer(0)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    normed = layer.attention_norm(x)
    heads = (layer.attention.queries(normed), layer.attention.keys(normed), layer.attention.values(normed))
    attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in heads), enable_gqa=True)
    expected = layer.finish(x, attended.transpose(1, 2))

    fused = fuse_expert(expert.to(dtype), linears(dtype), eps=EPS, rows=10)
    still = Angles(cos=torch.ones(1, 5, 1, 8, dtype=dtype), sin=torch.zeros(1, 5, 1, 8, dtype=dtype))
    slots = Slots(keys=torch.zeros(2, 5, 2, 8, dtype=dtype), values=torch.zeros(2, 5, 2, 8, dtype=dtype), start=0)
    found = fused.layers[0](x.to(dtype), still, slots, (Rows(5, 5),), None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slots.keys.double(), heads[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slots.values.double(), heads[2], rtol=1e-5, atol=1e-5)
    slots.keys.zero_()
    assert fused.closing(x.to(dtype), still, slots).shape[2] == 0
    torch.testing.assert_close(slots.keys.double(), heads[1], rtol=1e-5, atol=1e-5)
    final = fused.norm(x.to(dtype)) * fused.gain
    torch.testing.assert_close(final.double(), expert.double().norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clock", ["data", "noise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_head_is_the_head(clock: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    head = ActionHead(dim=16, state_dim=3, action_dim=5, clock=clock).to(dtype)
    gain, steps = torch.rand(16, dtype=torch.float64), 4
    fused = FusedHead(head, linears(dtype), steps=steps, chunk=6, gain=gain)
    actions, tokens, state = (torch.randn(2, *shape, dtype=dtype) for shape in ((6, 5), (6, 16), (3,)))
    for position in (0.0, 0.5, 1.0, 3.5, 4.0):
        torch.testing.assert_close(
            fused.embed_actions(actions, position), head.embed_actions(actions, position / steps), rtol=0, atol=1e-5
        )
    read = head.velocity((tokens * gain).to(dtype)) / steps
    torch.testing.assert_close(fused.increment(tokens), read, rtol=0, atol=1e-5)
    torch.testing.assert_close(fused.embed_state(state), head.embed_state(state), rtol=0, atol=1e-5)


def test_one_convolution_does_what_the_two_do() -> None:
    head = ForesightHead(dim=48, latent_channels=4, cell=4)
    latents = torch.randn(3, 4, 16, 8)
    kernel, bias = head.folded(torch.float64)
    two = head.downsample(head.project_in(latents))
    torch.testing.assert_close(F.conv2d(latents.double(), kernel, bias, stride=4).float(), two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tower_for_a_fixed_grid_is_transformers_own(grid: tuple[int, int], dtype: torch.dtype) -> None:
    config = toy_config()
    vision = config.vision
    assert isinstance(vision, Qwen3VLVision)
    backbone = randomised(config).to(dtype).backbone
    one = torch.randn(3, grid[0] * grid[1], 3, 1, vision.patch**2, dtype=dtype)
    pixels = one.expand(-1, -1, -1, vision.patch_frames, -1).flatten(2)
    theirs = backbone.vision(pixels.flatten(0, 1), grid_thw=torch.tensor([[1, *grid]] * 3)).pooler_output.unflatten(
        0, (3, -1)
    )
    tower = FixedGridTower(backbone.vision, vision, linears(dtype), rows=48)
    # Positions and angles are float32 in both, computed in another order.
    torch.testing.assert_close(tower(pixels, grid), theirs, rtol=0, atol=1e-5)


def test_the_kernel_is_chosen_by_measuring_and_the_answer_is_kept() -> None:
    times = measured(4, 8, 16, torch.float32, torch.get_num_threads())
    assert set(times) == {"aten", "onednn"}
    assert all(0 < seconds < 1 for seconds in times.values())
    assert measured(4, 8, 16, torch.float32, torch.get_num_threads()) is times
    packs = Linears("measured", device=CPU, dtype=torch.float32).packs(torch.zeros(16, 8), rows=4)
    assert packs == (times["onednn"] < times["aten"])


def test_float32_stays_float32_and_bfloat16_becomes_what_is_faster_here() -> None:
    assert fastest_dtype(torch.float32, rows=4, inner=8, outer=16) == torch.float32
    assert fastest_dtype(torch.float64, rows=4, inner=8, outer=16) == torch.float64
    threads = torch.get_num_threads()
    half, full = (min(measured(4, 8, 16, dtype, threads).values()) for dtype in (torch.bfloat16, torch.float32))
    chosen = fastest_dtype(torch.bfloat16, rows=4, inner=8, outer=16)
    assert chosen == (torch.bfloat16 if half < full else torch.float32)


def test_kernels_are_chosen_for_the_batch_that_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr(choice, "measured", lambda rows, *_: asked[-1].add(rows) or {"aten": 1.0, "onednn": 2.0})
    model = randomised(toy_config())
    for batch in (1, 8):
        asked.append(set())
        fuse_for_inference(model, ((4, 4),) * 3, batch=batch)
    assert asked[1] == {8 * rows for rows in asked[0]}
    assert {toy_config().chunk, 3 * 16, 3 * 4} <= asked[0]  # actions, patches, image tokens
