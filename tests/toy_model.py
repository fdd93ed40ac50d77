"""A model of toy size, and random inputs that fit it."""

from dataclasses import replace

import torch

from moteur.recipes import (
    Inputs,
    InternVLAA1,
    InternVLAA1Config,
    InternVLVision,
    Qwen3VLVision,
    preset,
)
from moteur.recipes.config import ExpertSize, TokenIds
from moteur.recipes.inputs import each_tensor
from moteur.tokenizers import CosmosSize


def toy_config() -> InternVLAA1Config:
    """The 3B variant, every width different, so that a mix-up cannot go unnoticed."""
    return replace(
        preset("tiny"),
        depth=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        und=ExpertSize(dim=24, mlp_dim=40),
        gen=ExpertSize(dim=20, mlp_dim=28),
        act=ExpertSize(dim=28, mlp_dim=36),
        rope_sections=(2, 1, 1),
        vision=Qwen3VLVision(
            depth=1,
            dim=16,
            mlp_dim=24,
            heads=2,
            patch=8,
            patch_frames=2,
            merge=2,
            positions=16,
            rope_base=10_000.0,
            deepstack=(),
            min_pixels=1024,
            max_pixels=1024,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=replace(
            CosmosSize.ci8x8(),
            channels=32,
            multipliers=(1, 1, 1),
            residual_blocks=1,
            z_channels=4,
            latent_channels=4,
        ),
        frame_size=32,
        foresight_size=32,
        foresight_cell=2,
        text_length=5,
        chunk=4,
        state_dim=3,
        action_dim=5,
        steps=3,
    )


def toy_config_2b() -> InternVLAA1Config:
    """The 2B variant at the same widths."""
    return replace(
        toy_config(),
        qk_norm=False,
        qkv_bias=True,
        rope_base=100.0,
        rope_sections=None,
        text_scaling=True,
        token_ids=TokenIds(image=3, vision_start=None, vision_end=None, pad=0),
        vision=InternVLVision(
            depth=1,
            dim=16,
            mlp_dim=24,
            heads=2,
            size=32,
            patch=8,
            merge=2,
            norm_eps=1e-6,
            projector_eps=1e-5,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )


def randomised(config: InternVLAA1Config, *, decoder: bool = False, seed: int = 7) -> InternVLAA1:
    """A model whose weights all matter: norms and biases too are away from their initial values."""
    torch.manual_seed(seed)
    model = InternVLAA1(config, decoder=decoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_inputs(config: InternVLAA1Config, batch: int, seed: int) -> Inputs:
    """Inputs of a batch whose instructions differ in length, all cameras present."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(1, config.text_length + 1, (batch, 1), generator=draw)
    side = config.frame_size
    return Inputs(
        frames=torch.rand(batch, config.views, 2, 3, side, side, generator=draw),
        instruction=torch.randint(5, config.vocabulary, (batch, config.text_length), generator=draw),
        attention_mask=torch.arange(config.text_length) < words,
        view_valid=torch.ones(batch, config.views, dtype=torch.bool),
        state=torch.randn(batch, config.state_dim, generator=draw),
    )


def saying(inputs: Inputs, words: int) -> Inputs:
    """The same inputs with an instruction of so many tokens in every sample."""
    mask = torch.arange(inputs.instruction.shape[1]) < words
    return replace(inputs, attention_mask=mask.expand(inputs.instruction.shape))


def as_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs, floats in another dtype."""
    return each_tensor(inputs, lambda value: value.to(dtype) if value.is_floating_point() else value)
