"""Frames: conversion to floats in [0, 1], and resizing with padding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def as_unit_range(
    name: str, frames: UInt8[Tensor, "*lead 3 height width"] | Float[Tensor, "*lead 3 height width"]
) -> Float[Tensor, "*lead 3 height width"]:
    """Convert frames to float32 in [0, 1]: uint8 is divided by 255, floats are checked.

    Args:
        name: Name of the argument, for messages.
        frames: Colour frames, channels before height and width.

    Raises:
        ValueError: There are not three channels, the dtype is another, or floats leave [0, 1] or are not finite.

    Examples:
        >>> as_unit_range("frames", torch.full((3, 2, 2), 255, dtype=torch.uint8)).max()
        tensor(1.)
    """
    if frames.shape[-3] != 3:  # noqa: PLR2004  # red, green, blue
        raise ValueError(f"{name}: expected 3 channels before height and width, got {frames.shape[-3]}")
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise ValueError(f"{name}: expected uint8 or floats, got {frames.dtype}")
    low, high = torch.aminmax(frames.detach()) if frames.numel() else (frames.new_zeros(()), frames.new_zeros(()))
    if not (low >= 0 and high <= 1):  # written so that NaN fails
        raise ValueError(f"{name}: expected floats in [0, 1] or uint8, got floats in [{low:g}, {high:g}]")
    return frames.float()


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
