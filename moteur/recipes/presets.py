"""Configurations by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, overload

from moteur.flowmatch import BetaTime
from moteur.recipes.config import (
    ExpertSize,
    InternVLAA1Config,
    InternVLVision,
    Qwen3VLVision,
    TokenIds,
)
from moteur.recipes.pi0_config import Pi0Config, SigLIPVision
from moteur.tokenizers import CosmosSize

Preset = Literal["3B", "2B", "tiny"]
Pi0Preset = Literal["pi0", "pi05", "tiny-pi0", "tiny-pi05"]


@overload
def preset(name: Preset) -> InternVLAA1Config: ...
@overload
def preset(name: Pi0Preset) -> Pi0Config: ...
def preset(name: Preset | Pi0Preset) -> InternVLAA1Config | Pi0Config:
    """Sizes by name: those that were released, or "tiny" ones that train on a laptop's CPU.

    "3B", "2B" and "tiny" are InternVLA-A1's, "pi0", "pi05", "tiny-pi0" and "tiny-pi05" those of π0 and π0.5.

    Raises:
        ValueError: If there is no preset of that name.

    Examples:
        >>> preset("3B").head_dim
        128
    """
    presets: dict[str, Callable[[], InternVLAA1Config | Pi0Config]] = {
        "3B": _internvla_a1_3b,
        "2B": _internvla_a1_2b,
        "tiny": _tiny,
        "pi0": _pi0,
        "pi05": lambda: _pi05(_pi0()),
        "tiny-pi0": _tiny_pi0,
        "tiny-pi05": lambda: _pi05(_tiny_pi0()),
    }
    if name not in presets:
        raise ValueError(f"name: expected one of {sorted(presets)}, got {name!r}")
    return presets[name]()


def _internvla_a1_3b() -> InternVLAA1Config:
    return InternVLAA1Config(
        depth=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        und=ExpertSize(dim=2048, mlp_dim=6144),
        gen=ExpertSize(dim=1024, mlp_dim=3072),
        act=ExpertSize(dim=1024, mlp_dim=3072),
        norm_eps=1e-6,
        qk_norm=True,
        qkv_bias=False,
        rope_base=5_000_000.0,
        rope_sections=(24, 20, 20),
        vocabulary=151_936,
        text_scaling=False,
        token_ids=TokenIds(image=151_655, vision_start=151_652, vision_end=151_653, pad=151_643),
        vision=Qwen3VLVision(
            depth=24,
            dim=1024,
            mlp_dim=4096,
            heads=16,
            patch=16,
            patch_frames=2,
            merge=2,
            positions=2304,
            rope_base=10_000.0,
            deepstack=(5, 11, 17),
            min_pixels=65_536,
            max_pixels=16_777_216,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=CosmosSize.ci8x8(),
        views=3,
        frame_size=224,
        text_length=48,
        history=15,
        foresight_size=256,
        foresight_cell=8,
        foresight_eps=1e-5,
        chunk=50,
        state_dim=32,
        action_dim=32,
        min_period=4e-3,
        max_period=4.0,
        steps=10,
        time=BetaTime.released(),
        foresight_weight=0.01,
        action_reduction="valid",
    )


def _internvla_a1_2b() -> InternVLAA1Config:
    return replace(
        _internvla_a1_3b(),
        depth=24,
        heads=14,
        kv_heads=2,
        head_dim=64,
        und=ExpertSize(dim=896, mlp_dim=4864),
        gen=ExpertSize(dim=896, mlp_dim=4864),
        act=ExpertSize(dim=896, mlp_dim=4864),
        qk_norm=False,
        qkv_bias=True,
        rope_base=10_000.0,  # as the released code computes; InternVL3's own config says 1,000,000
        rope_sections=None,
        vocabulary=151_674,
        text_scaling=True,  # as the released code computes; InternVL3 itself does not scale
        token_ids=TokenIds(image=151_667, vision_start=None, vision_end=None, pad=151_643),
        vision=InternVLVision(
            depth=24,
            dim=1024,
            mlp_dim=4096,
            heads=16,
            size=448,
            patch=14,
            merge=2,
            norm_eps=1e-6,
            projector_eps=1e-5,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )


def _tiny() -> InternVLAA1Config:
    return replace(
        _internvla_a1_3b(),
        depth=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        und=ExpertSize(dim=128, mlp_dim=256),
        gen=ExpertSize(dim=128, mlp_dim=256),
        act=ExpertSize(dim=128, mlp_dim=256),
        rope_sections=(8, 4, 4),
        vocabulary=128,
        token_ids=TokenIds(image=3, vision_start=1, vision_end=2, pad=0),
        vision=Qwen3VLVision(
            depth=2,
            dim=96,
            mlp_dim=192,
            heads=4,
            patch=8,
            patch_frames=1,
            merge=2,
            positions=64,
            rope_base=10_000.0,
            deepstack=(),
            min_pixels=4096,
            max_pixels=4096,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=replace(CosmosSize.ci8x8(), channels=64, multipliers=(1, 1), residual_blocks=1),
        frame_size=64,
        text_length=16,
        foresight_size=64,
        foresight_cell=4,
        chunk=30,
        state_dim=8,
        action_dim=8,
        foresight_weight=0.2,
    )


def _pi0() -> Pi0Config:
    return Pi0Config(
        variant="pi0",
        depth=18,
        heads=8,
        kv_heads=1,
        head_dim=256,
        vlm=ExpertSize(dim=2048, mlp_dim=16_384),
        act=ExpertSize(dim=1024, mlp_dim=4096),
        norm_eps=1e-6,
        rope_base=10_000.0,
        vocabulary=257_152,
        pad=0,
        vision=SigLIPVision(depth=27, dim=1152, mlp_dim=4304, heads=16, size=224, patch=14, norm_eps=1e-6),
        views=3,
        text_length=48,
        prompt="words",
        chunk=50,
        state_dim=32,
        action_dim=32,
        min_period=4e-3,
        max_period=4.0,
        steps=10,
        time=BetaTime.released(),
        action_reduction="valid",
    )


def _pi05(config: Pi0Config) -> Pi0Config:
    return replace(config, variant="pi05", prompt="state", text_length=200)


def _tiny_pi0() -> Pi0Config:
    return replace(
        _pi0(),
        depth=4,
        heads=4,
        head_dim=32,
        vlm=ExpertSize(dim=128, mlp_dim=256),
        act=ExpertSize(dim=128, mlp_dim=256),
        vocabulary=512,
        vision=SigLIPVision(depth=2, dim=96, mlp_dim=192, heads=4, size=64, patch=16, norm_eps=1e-6),
        text_length=16,
        chunk=30,
        state_dim=8,
        action_dim=8,
    )
