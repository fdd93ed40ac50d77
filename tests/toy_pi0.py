"""π0 and π0.5 at toy size, their inputs, and their tensors under the released names."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from moteur.recipes import Inputs, Pi0, Pi0Config, SigLIPVision, preset
from moteur.recipes.checkpoints.keymap import released_tensors
from moteur.recipes.config import ExpertSize


def toy_pi0(variant: Literal["pi0", "pi05"], **changes: object) -> Pi0Config:
    """Sizes that differ from each other, two key and value heads, and another patch than the released one."""
    return replace(
        preset(variant),
        depth=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vlm=ExpertSize(dim=24, mlp_dim=40),
        act=ExpertSize(dim=20, mlp_dim=28),
        vocabulary=50,
        vision=SigLIPVision(depth=2, dim=12, mlp_dim=20, heads=3, size=21, patch=7, norm_eps=1e-6),
        text_length=6,
        chunk=5,
        state_dim=4,
        action_dim=3,
        **changes,
    )


def random_pi0(config: Pi0Config, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pi0:
    """A model whose every tensor is drawn, so that none stays at a value that hides it."""
    model = Pi0(config).to(dtype).eval()
    own = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=own, dtype=torch.float64) * 0.2)
    return model


def pi0_inputs(config: Pi0Config, batch: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    """Ragged prompts, and another set of cameras in every sample."""
    own = torch.Generator().manual_seed(seed)
    cameras = torch.rand(batch, config.views, generator=own) < 0.6
    cameras[:, 0] |= ~cameras.any(dim=1)
    length = torch.randint(1, config.text_length + 1, (batch, 1), generator=own)
    side = config.frame_size
    return Inputs(
        frames=torch.rand(batch, config.views, 1, 3, side, side, generator=own, dtype=dtype),
        instruction=torch.randint(0, config.vocabulary, (batch, config.text_length), generator=own),
        attention_mask=torch.arange(config.text_length) < length,
        view_valid=cameras,
        state=torch.randn(batch, config.state_dim, generator=own, dtype=dtype),
    )


def oracle_arguments(model: Pi0, inputs: Inputs) -> dict[str, object]:
    """What `pi0_oracle.velocity` takes, but for the noisy actions and the time."""
    config = model.config
    state: dict[str, Tensor] = released_tensors(model.state_dict(), config)
    return {
        "w": state,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "vision_heads": config.vision.heads,
        "patch": config.vision.patch,
        "images": inputs.frames[:, :, 0] * 2 - 1,
        "image_valid": inputs.view_valid,
        "words": inputs.instruction,
        "word_valid": inputs.attention_mask,
        "state": inputs.state,
    }
