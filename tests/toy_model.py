"""A model of toy size, and random inputs that fit it."""

from dataclasses import replace

import torch

from moteur.recipes.config import ExpertSize, InternVLAA1Config, InternVLVision, Qwen3VLVision, TokenIds
from moteur.recipes.inputs import Inputs
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.presets import preset
from moteur.tokenizers import CosmosSize

GRIDS = {  # patches of each view: Qwen3-VL's cameras may differ, InternViT sees one square
    "3B": ((4, 4), (4, 6), (6, 4)),
    "2B": ((4, 4), (4, 4), (4, 4)),
}


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
        cosmos=CosmosSize(
            channels=32,
            multipliers=(1, 1, 1),
            residual_blocks=1,
            patch=4,
            downsamplings=1,
            z_channels=4,
            groups=32,
            eps=1e-6,
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


def randomised(config: InternVLAA1Config, *, decoder: bool = False) -> InternVLAA1:
    """A model whose weights all matter: norms and biases too are away from their initial values."""
    torch.manual_seed(7)
    model = InternVLAA1(config, decoder=decoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def view_lengths(config: InternVLAA1Config, grid: tuple) -> list[int]:
    """Tokens of each view in the understanding stream, marks before and after it included."""
    marks = sum(mark is not None for mark in (config.token_ids.vision_start, config.token_ids.vision_end))
    return [rows * columns // config.vision.merge**2 + marks for rows, columns in grid]


def random_inputs(config: InternVLAA1Config, batch: int, seed: int) -> Inputs:
    """Inputs of a batch whose instructions differ in length, all cameras present."""
    draw = torch.Generator().manual_seed(seed)
    grid = GRIDS[config.variant]
    und = sum(view_lengths(config, grid)) + config.text_length
    texts = torch.randint(1, config.text_length + 1, (batch,), generator=draw)
    valid = torch.arange(und).expand(batch, -1) < (und - config.text_length + texts)[:, None]
    patches, values = sum(rows * columns for rows, columns in grid), 3 * config.vision.patch**2
    if isinstance(config.vision, Qwen3VLVision):
        values *= config.vision.patch_frames
    size = config.frame_size
    return Inputs(
        input_ids=torch.randint(5, config.vocabulary, (batch, und), generator=draw),
        und_valid=valid,
        pixel_values=torch.rand(batch, patches, values, generator=draw) * 2 - 1,
        image_grid=grid,
        view_valid=torch.ones(batch, config.views, dtype=torch.bool),
        state=torch.randn(batch, config.state_dim, generator=draw),
        frames=torch.rand(batch, config.views, 2, 3, size, size, generator=draw),
    )


def without_views(config: InternVLAA1Config, inputs: Inputs, view_valid: torch.Tensor) -> Inputs:
    """The same inputs with some cameras missing."""
    seen = view_valid.repeat_interleave(torch.tensor(view_lengths(config, inputs.image_grid)), dim=1)
    und_valid = inputs.und_valid.clone()
    und_valid[:, : seen.shape[1]] &= seen
    return replace(inputs, view_valid=view_valid, und_valid=und_valid)
