"""Inputs as a processor would make them."""

from dataclasses import replace

import torch
from toy_model import random_inputs

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs


def still(config: InternVLAA1Config, batch: int, seed: int) -> Inputs:
    """Random inputs whose frames stand still: Qwen3-VL's processor hands every image over as two equal frames."""
    inputs = random_inputs(config, batch, seed)
    if config.variant == "2B":
        return inputs
    patches = inputs.pixel_values.unflatten(-1, (3, config.vision.patch_frames, -1)).clone()
    patches[:, :, :, 1:] = patches[:, :, :, :1]
    return replace(inputs, pixel_values=patches.flatten(2))


def saying(inputs: Inputs, config: InternVLAA1Config, words: int) -> Inputs:
    """The same inputs with an instruction of so many tokens in every sample."""
    valid = inputs.und_valid.clone()
    text = valid.shape[1] - config.text_length
    valid[:, text:] = torch.arange(config.text_length) < words
    return replace(inputs, und_valid=valid)


def as_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    names = ("pixel_values", "state", "frames")
    return replace(inputs, **{name: getattr(inputs, name).to(dtype) for name in names})
