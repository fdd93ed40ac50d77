"""Rotary angles: against `transformers`, against closed forms, and what rotation is for."""

import cmath
import math

import pytest
import torch
from toy_backbones import BEFORE_5, rope
from transformers import Qwen2VLConfig, Qwen3VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from moteur.mot import Expert, MoT, rotary_angles
from moteur.mot.rotary import frequency_axes, prepare_rotation, rotate


def three_axes(device: torch.device) -> torch.Tensor:
    """Positions as text followed by an image has them, unlike on every axis and in every sample."""
    return torch.randint(0, 300, (3, 2, 17), generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize(("sections", "head_dim"), [([24, 20, 20], 128), ([4, 2, 2], 16)], ids=str)
def test_interleaved_sections_equal_those_of_qwen3_vl_bit_for_bit(
    sections: list[int], head_dim: int, device: torch.device
) -> None:
    config = Qwen3VLTextConfig(head_dim=head_dim, **rope(5e6, mrope_section=sections))
    theirs = Qwen3VLTextRotaryEmbedding(config).to(device)(torch.zeros(1, device=device), three_axes(device))
    ours = rotary_angles(three_axes(device), head_dim=head_dim, base=5e6, sections=sections)
    for our, their in zip(ours, theirs, strict=True):
        # The reference computes its frequencies on the CPU, so a GPU may differ in their last bit, here times 300.
        torch.testing.assert_close(our, their, rtol=0, atol=0 if device.type == "cpu" else 300 * 2**-22)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 chooses the sections where it rotates")
def test_chunked_sections_equal_those_of_qwen2_vl_bit_for_bit(device: torch.device) -> None:
    text = {"hidden_size": 512, "num_attention_heads": 4, **rope(1e6, mrope_section=[16, 24, 24])}
    config = Qwen2VLConfig(text_config=text)
    embed = Qwen2VLRotaryEmbedding(config.text_config).to(device)
    theirs = embed(torch.zeros(1, device=device), three_axes(device))
    ours = rotary_angles(three_axes(device), head_dim=128, base=1e6, sections=[16, 24, 24], interleaved=False)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=0 if device.type == "cpu" else 300 * 2**-22)


def test_equal_positions_on_all_axes_are_plain_rotary(device: torch.device) -> None:
    positions = torch.arange(40, device=device)[None]
    plain = rotary_angles(positions, head_dim=16, base=1e4)
    for interleaved in (True, False):
        stacked = positions.expand(3, -1, -1)
        axes = rotary_angles(stacked, head_dim=16, base=1e4, sections=[4, 2, 2], interleaved=interleaved)
        assert torch.equal(axes[0], plain[0])
        assert torch.equal(axes[1], plain[1])


def test_float64_angles_are_the_closed_form_and_float32_ones_err_by_their_rounding(device: torch.device) -> None:
    positions = [0, 1, 77, 12_345]
    table = torch.tensor([positions], device=device)
    exact = torch.tensor(
        [[math.cos(p * 1e4 ** (-2 * (j % 6) / 12)) for j in range(12)] for p in positions], dtype=torch.float64
    )
    wide, _ = rotary_angles(table, head_dim=12, base=1e4, dtype=torch.float64)
    narrow, _ = rotary_angles(table, head_dim=12, base=1e4)
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    # An angle is a position times a frequency: each carries a few units of relative rounding error.
    bound = 4 * torch.tensor(positions, dtype=torch.float64)[:, None] + 1
    assert ((wide[0].cpu() - exact).abs() <= bound * 2**-52).all()
    assert ((narrow[0].cpu() - exact).abs() <= bound * 2**-23).all()


def test_rotation_equals_that_of_transformers_and_its_outputs_may_be_passed_in(device: torch.device) -> None:
    x = torch.randn(2, 3, 5, 8, device=device)  # batch, heads, seq, head_dim
    cos, sin = rotary_angles(torch.arange(10, device=device).reshape(2, 5), head_dim=8, base=100.0)
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    ours = rotate(x.transpose(1, 2), prepare_rotation((cos, sin))).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=2**-22, atol=2**-22)


def test_scores_depend_on_the_distance_alone(device: torch.device) -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, device=device)

    def score(i: int, j: int) -> torch.Tensor:
        table = torch.tensor([[i, j]], device=device)
        rotation = prepare_rotation(rotary_angles(table, head_dim=8, base=100.0, dtype=torch.float64))
        turned = rotate(torch.cat([query, key], dim=1), rotation)
        return turned[0, 0, 0] @ turned[0, 1, 0]

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=0, atol=1e-12)
    assert abs(score(3, 1) - score(4, 1)) > 1e-3


def test_a_float64_model_rotates_in_float64_all_the_way(device: torch.device) -> None:
    """An independent rotation: each pair as one complex number times a unit one, angles from Python's own floats."""
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64, device=device)
    positions = [0, 77, 12_345]
    rotary = rotary_angles(torch.tensor([positions], device=device), head_dim=8, base=100.0, dtype=torch.float64)
    turned = rotate(x, prepare_rotation(rotary))
    turns = torch.tensor(
        [[cmath.rect(1, p * 100.0 ** (-j / 4)) for j in range(4)] for p in positions], dtype=torch.complex128
    )
    expected = torch.complex(x[..., :4], x[..., 4:]) * turns.to(device)[None, :, None]
    assert turned.dtype == torch.float64
    # Angles of 12,345 carry 2^-53 of themselves, 1.4e-12; float32 angles would err by 1e-3.
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1), rtol=0, atol=1e-11)


def test_a_bfloat16_vector_is_rotated_in_the_precision_of_the_angles_and_rounded_once(device: torch.device) -> None:
    x = torch.randn(2, 64, 3, 8, device=device).bfloat16()
    rotation = prepare_rotation(rotary_angles(torch.arange(64, device=device)[None], head_dim=8, base=100.0))
    turned = rotate(x, rotation)
    assert turned.dtype == torch.bfloat16
    exact = rotate(x.double(), tuple(table.double() for table in rotation))
    half_a_unit = exact.abs() * 2**-8  # bfloat16 keeps 8 bits
    assert ((turned.double() - exact).abs() <= half_a_unit + 1e-6).all()


def test_interleaving_gives_axis_zero_what_the_others_leave() -> None:
    axes = frequency_axes([24, 20, 20], head_dim=128, interleaved=True)
    assert axes == [0, 1, 2] * 20 + [0] * 4
    assert frequency_axes([1, 1], head_dim=4, interleaved=True) == [0, 1]
    assert frequency_axes([2, 0], head_dim=4, interleaved=True) == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 7}, r"head_dim: expected an even number, got 7"),
        ({"dtype": torch.bfloat16}, r"dtype: expected torch.float32 or torch.float64, got torch.bfloat16"),
        ({"sections": [4, 2, 1]}, r"sections: expected sizes that sum to head_dim / 2 = 8 .*, got \[4, 2, 1\], which"),
        ({"sections": [9, -1, 0]}, r"sections: expected sizes .*, got \[9, -1, 0\], which"),
        ({"sections": [8, -1, 0], "interleaved": False}, r"sections: expected sizes .* = 8, got \[8, -1, 0\], which"),
        ({"sections": [4, 2, 1], "interleaved": False}, r"sections: expected sizes .* = 8, got \[4, 2, 1\], which"),
        (
            {"sections": [1, 4, 3]},
            r"sections: .*taking turns can have, got \[1, 4, 3\], which would become \[3, 3, 2\]",
        ),
        ({"sections": [4, 4]}, r"positions: expected \(2, batch, seq\) for 2 sections, got shape \(3, 2, 5\)"),
    ],
)
def test_angles_that_make_no_sense_are_errors(change: dict[str, object], message: str) -> None:
    arguments = {"head_dim": 16, "base": 1e4, "sections": [4, 2, 2], **change}
    with pytest.raises(ValueError, match=message):
        rotary_angles(torch.zeros(3, 2, 5, dtype=torch.long), **arguments)


def test_the_base_has_no_default() -> None:
    with pytest.raises(TypeError, match="base"):
        rotary_angles(torch.zeros(1, 5, dtype=torch.long), head_dim=8)


@pytest.mark.usefixtures("without_shape_checks")
def test_angles_of_another_batch_are_an_error() -> None:
    mot = MoT({"one": Expert(dim=8, depth=1, heads=2, kv_heads=2, head_dim=4, mlp_dim=8)})
    rotary = rotary_angles(torch.arange(6).reshape(2, 3), head_dim=4, base=100.0)
    with pytest.raises(ValueError, match="rotary: expected a batch of 1 or 1, got 2"):
        mot({"one": torch.zeros(1, 3, 8)}, attention=lambda q, _k, _v: q, rotary=rotary)


@pytest.mark.usefixtures("without_shape_checks")
def test_cosines_of_another_batch_are_an_error_beside_sines_that_fit() -> None:
    mot = MoT({"one": Expert(dim=8, depth=1, heads=2, kv_heads=2, head_dim=4, mlp_dim=8)})
    cos, sin = rotary_angles(torch.arange(6).reshape(2, 3), head_dim=4, base=100.0)
    with pytest.raises(ValueError, match="rotary: expected a batch of 1 or 1, got 2"):
        mot({"one": torch.zeros(1, 3, 8)}, attention=lambda q, _k, _v: q, rotary=(cos, sin[:1]))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 4), (2, 3, 6), (2, 3, 1)])
def test_angles_of_the_wrong_shape_are_refused_by_torch(shape: tuple[int, ...]) -> None:
    # No hand-written check: this holds that nothing broadcasts in silence.
    mot = MoT({"one": Expert(dim=8, depth=1, heads=2, kv_heads=2, head_dim=4, mlp_dim=8)})
    with pytest.raises((RuntimeError, ValueError)):
        mot({"one": torch.zeros(2, 3, 8)}, attention=lambda q, _k, _v: q, rotary=(torch.ones(shape), torch.ones(shape)))
