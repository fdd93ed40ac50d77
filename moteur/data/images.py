"""Frames: conversion to floats in [0, 1], and resizing with padding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def as_unit_floats(
    frames: UInt8[Tensor, "*lead 3 height width"] | Float[Tensor, "*lead 3 height width"],
) -> Float[Tensor, "*lead 3 height width"]:
    """Convert frames to floats in [0, 1], float32 or wider: uint8 is divided by 255.

    Examples:
        >>> as_unit_floats(torch.full((3, 2, 2), 255, dtype=torch.uint8)).max()
        tensor(1.)
    """
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    return frames.to(torch.promote_types(frames.dtype, torch.float32))


def resize_with_pad(
    frames: Float[Tensor, "*lead channel height width"], size: int
) -> Float[Tensor, "*lead channel {size} {size}"]:
    """Resize frames into a black square without changing their aspect ratio.

    Bilinear interpolation without antialiasing; sizes are rounded, and the padding is split evenly with the odd pixel
    at the bottom or right, as for the released model.

    Args:
        frames: Frames in [0, 1].
        size: Side of the square in pixels.

    Examples:
        >>> resize_with_pad(torch.ones(3, 480, 640), 224).mean()  # 168 of 224 rows are picture
        tensor(0.7500)
    """
    height, width = frames.shape[-2:]
    if (height, width) == (size, size):
        return frames
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    flat = frames.reshape(-1, *frames.shape[-3:])
    flat = F.interpolate(flat, (rows, columns), mode="bilinear", align_corners=False).clamp(0, 1)
    top, left = (size - rows) // 2, (size - columns) // 2
    flat = F.pad(flat, (left, size - columns - left, top, size - rows - top))
    return flat.reshape(*frames.shape[:-2], size, size)
