"""Configurations: what no model can have is refused where it is made, and what follows from the numbers."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_backbones import smart_resize
from transformers import Qwen3VLTextConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from moteur.data import Window
from moteur.recipes import InternVLAA1Config, preset
from moteur.recipes.config import ExpertSize, TokenIds


def changed(variant: str, path: str, value: object) -> InternVLAA1Config:
    config: Any = preset(variant)
    part, _, field = path.rpartition(".")
    return replace(config, **({field: value} if not part else {part: replace(getattr(config, part), **{field: value})}))


@pytest.mark.usefixtures("without_shape_checks")  # they would refuse some of these values first
@pytest.mark.parametrize(
    ("variant", "path", "value", "message"),
    [
        ("3B", "depth", 0, "InternVLAA1Config.depth: expected greater than 0, got 0"),
        ("3B", "norm_eps", 0.0, "InternVLAA1Config.norm_eps: expected greater than 0, got 0.0"),
        ("3B", "und.dim", -1, "ExpertSize.dim: expected greater than 0, got -1"),
        ("3B", "heads", 12, "heads: expected a multiple of 8 key and value heads, got 12"),
        ("3B", "head_dim", 127, "head_dim: expected an even number, rotary angles turn pairs, got 127"),
        (
            "3B",
            "rope_sections",
            (24, 20, 24),
            r"rope_sections: expected three .* head_dim / 2 = 64, got \(24, 20, 24\)",
        ),
        ("3B", "rope_sections", (32, 32), r"rope_sections: expected three numbers that sum to .* 64, got \(32, 32\)"),
        ("2B", "rope_sections", (12, 10, 10), "rope_sections: expected None, InternVL3 has plain positions, got"),
        ("3B", "act.dim", 1023, "act.dim: expected an even number, for sines and cosines of time, got 1023"),
        ("3B", "min_period", 5.0, r"min_period, max_period: expected shortest < longest, got \(5.0, 4.0\)"),
        ("3B", "foresight_weight", -1.0, "foresight_weight: expected 0 or more, got -1.0"),
        ("3B", "action_reduction", "mean", "action_reduction: expected 'valid' or 'released', got mean"),
        (
            "3B",
            "foresight_cell",
            5,
            "foresight_size: expected a multiple of compression × foresight_cell = 40, got 256",
        ),
        (
            "3B",
            "foresight_size",
            250,
            "foresight_size: expected a multiple of compression × foresight_cell = 64, got 250",
        ),
        ("3B", "token_ids.image", 151_936, "token_ids: expected entries of a vocabulary of 151936, got"),
        ("3B", "token_ids.vision_end", None, "token_ids.vision_start, vision_end: expected a token before and after"),
        ("2B", "token_ids.vision_end", 1, "token_ids.vision_start, vision_end: expected None, nothing stands around"),
        ("3B", "vision.dim", 1000, "vision.dim: expected a multiple of 4 × 16 heads, got 1000"),
        ("3B", "vision.positions", 2300, "vision.positions: expected a square number, got 2300"),
        ("3B", "vision.deepstack", (5, 24), r"vision.deepstack: expected different blocks of the tower, got \(5, 24\)"),
        ("3B", "vision.min_pixels", 2**30, "vision.min_pixels, max_pixels: expected smallest <= largest, got"),
        ("3B", "vision.std", (0.5, 0.0, 0.5), "Qwen3VLVision.std: expected greater than 0"),
        ("2B", "vision.dim", 1001, "vision.dim: expected a multiple of 16 heads, got 1001"),
        ("2B", "vision.size", 450, "vision.size: expected a multiple of patch × merge = 28, got 450"),
        ("3B", "cosmos.multipliers", (), r"multipliers: expected one or more positive numbers, got \(\)"),
        ("3B", "cosmos.downsamplings", 4, "downsamplings: expected 0 to 3, the number of levels, got 4"),
    ],
)
def test_a_size_that_fits_no_model_is_named(variant: str, path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(variant, path, value)


def test_every_preset_and_the_ablation_without_foresight_pass_their_own_checks() -> None:
    for name in ("3B", "2B", "tiny"):
        assert preset(name).without_foresight().gen is None
    ablated = replace(preset("3B").without_foresight(), foresight_size=250)
    assert ablated.foresight_size == 250
    assert TokenIds(image=0, vision_start=None, vision_end=None, pad=0)
    assert ExpertSize(dim=1, mlp_dim=1)


@pytest.mark.parametrize(("variant", "tokens", "stream"), [("3B", 66, 246), ("2B", 256, 816)])
def test_published_sizes_give_these_tokens(variant: str, tokens: int, stream: int) -> None:
    config = preset(variant)
    assert config.image_tokens == tokens
    assert config.views * tokens + config.text_length == stream
    assert config.latent_shape == (16, 32, 32)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(16, 256), (224, 256), (256, 256), (300, 288), (640, 640), (5000, 4096)],
)
def test_published_limits_lead_to_these_sizes(side: int, expected: int) -> None:
    assert preset("3B").vision.fitted(side) == expected


@given(st.integers(1, 20_000))
def test_pictures_get_the_size_that_transformers_gives_them(side: int) -> None:
    expected = smart_resize(side, side, factor=32, min_pixels=65_536, max_pixels=16_777_216)
    assert (preset("3B").vision.fitted(side),) * 2 == expected


@given(st.sampled_from([7, 14, 16]), st.integers(1, 20), st.integers(-13, 13))
def test_a_picture_whose_nearest_size_has_just_enough_pixels_gets_that_size(
    patch: int, units: int, offset: int
) -> None:
    least, side = (units * 2 * patch) ** 2, units * 2 * patch + offset
    vision = replace(preset("3B").vision, patch=patch, min_pixels=least)
    expected = smart_resize(side, side, factor=2 * patch, min_pixels=least, max_pixels=vision.max_pixels)
    assert (vision.fitted(side),) * 2 == expected


def test_constants_of_the_release_are_those_of_its_sources() -> None:
    """Recorded numbers have sizes of their own, so they do not hold these constants."""
    large, small = preset("3B"), preset("2B")
    text = Qwen3VLTextConfig()
    assert large.rope_sections == (24, 20, 20)  # of 64 pairs; the published config.json says mrope_section
    assert (large.rope_base, small.rope_base, small.rope_sections) == (5e6, 1e4, None)  # as the released code computes
    assert list(large.vision.mean) == IMAGENET_STANDARD_MEAN
    assert list(large.vision.std) == IMAGENET_STANDARD_STD
    assert list(small.vision.mean) == IMAGENET_DEFAULT_MEAN
    assert list(small.vision.std) == IMAGENET_DEFAULT_STD
    assert small.vision.projector_eps == nn.LayerNorm(1).eps  # InternVL3's projector states none of its own
    assert large.norm_eps == small.norm_eps == text.rms_norm_eps == 1e-6
    assert small.text_scale == 896**0.5
    assert large.text_scale == 1


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_a_released_model_takes_the_frames_and_predicts_the_steps_of_the_paper(variant: str) -> None:
    config = preset(variant)
    window = Window(offsets=(-config.history, 0, config.history), chunk=config.chunk)
    assert window.frame_offsets(fps=30) == (-15, 0, 15)  # its interval m
    assert window.chunk == 50
    assert window == Window()  # what data takes where no model is named
