"""What a session refuses, before any compute. Values are looked at in host memory only, and not by torch operations."""

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from moteur.flowmatch.steps import Method
from moteur.recipes.checks import check_shapes, expect_shape
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision
from moteur.recipes.inputs import Inputs


def check_call(inputs: Inputs, config: InternVLAA1Config, grid: tuple[tuple[int, int], ...], *, still: bool) -> None:
    """Refuse inputs that do not fit the session.

    Raises:
        ValueError: Naming the argument, what was expected and what arrived.
    """
    check_shapes(inputs, config)
    if inputs.image_grid != grid:
        raise ValueError(f"image_grid: expected {grid} as the session was made for, got {inputs.image_grid}")
    vision = config.vision
    width = 3 * vision.patch**2 * (vision.patch_frames if isinstance(vision, Qwen3VLVision) else 1)
    expect_shape("pixel_values", inputs.pixel_values.shape[2:], (width,))
    if inputs.frames is not None and inputs.latents is not None:
        raise ValueError("inputs: expected either frames or latents for the generation expert, got both")
    if inputs.latents is not None:
        cosmos = config.cosmos
        side = config.foresight_size // (cosmos.patch * 2**cosmos.downsamplings)
        expect_shape("latents", inputs.latents.shape[3:], (cosmos.latent_channels, side, side))
    if inputs.frames is not None:
        check_frames("frames", inputs.frames, inputs.view_valid)
    if _here(inputs.state) and not np.isfinite(_array(inputs.state)).all():
        raise ValueError("state: expected finite values, got some that are not")
    if still and isinstance(vision, Qwen3VLVision) and _here(inputs.pixel_values):
        _check_still(_array(inputs.pixel_values).reshape(-1, 3, vision.patch_frames, vision.patch**2))


def check_options(
    inputs: Inputs, config: InternVLAA1Config, *, steps: int, method: str, noise: Tensor | None, prefix: Tensor | None
) -> None:
    """Refuse ways of acting that do not exist.

    Raises:
        ValueError: Naming the argument, what was expected and what arrived.
    """
    shape = (inputs.state.shape[0], config.chunk, config.action_dim)
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(map(repr, get_args(Method)))}, got {method!r}")
    if noise is not None:
        expect_shape("noise", noise.shape, shape)
    if prefix is not None:
        fits = prefix.ndim == len(shape) and prefix.shape[1] <= config.chunk
        if not fits or (prefix.shape[0], prefix.shape[2]) != (shape[0], shape[2]):
            raise ValueError(f"prefix: expected the first steps of {shape}, got {tuple(prefix.shape)}")


def check_frames(name: str, frames: Tensor, view_valid: Tensor | None) -> None:
    """Refuse frames of cameras that are there unless they are floats in [0, 1].

    Raises:
        ValueError: For another dtype, or values out of range or not finite.
    """
    if not frames.is_floating_point():
        raise ValueError(f"{name}: expected floats in [0, 1], got {frames.dtype}")
    if not _here(frames) or (view_valid is not None and not _here(view_valid)):
        return
    values = _array(frames)
    if view_valid is not None and not (seen := view_valid.numpy()).all():
        values = values[seen]
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails
        raise ValueError(f"{name}: expected floats in [0, 1], got floats in [{values.min():g}, {values.max():g}]")


def _check_still(frames: np.ndarray) -> None:
    later, earlier = frames[:, :, 1:], frames[:, :, :-1]
    if not (later == earlier).all() and not np.array_equal(later, earlier, equal_nan=True):
        raise ValueError(
            "pixel_values: expected still images, each frame of a patch equal, got others: give still=False"
        )


def _here(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _array(values: Tensor) -> np.ndarray:
    return (values.float() if values.dtype in {torch.bfloat16, torch.float16} else values).detach().numpy()
