"""Frames: conversion between bytes and floats in [0, 1], and resizing with padding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from moteur.data.convention import Convention, check_convention


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
    frames: UInt8[Tensor, "*lead channel height width"] | Float[Tensor, "*lead channel height width"],
    size: int,
    *,
    convention: Convention = "internvla_a1",
) -> UInt8[Tensor, "*lead channel {size} {size}"] | Float[Tensor, "*lead channel {size} {size}"]:
    """Resize frames into a black square without changing their aspect ratio.

    The picture is centred, with the odd row or column of padding at the bottom or right. Bytes come out as bytes and
    floats as floats; frames of the right size are not touched.

    | convention | sides of the picture | interpolation |
    |---|---|---|
    | `internvla_a1` | rounded | bilinear without antialiasing, of floats |
    | `lerobot` | rounded down | the same |
    | `openpi` | rounded down | bilinear with antialiasing, of bytes, as Pillow does it |

    For `openpi` PyTorch's own code for bytes runs, on the CPU. It differs from Pillow's by 1 in at most one byte in a
    hundred where a picture shrinks, and in a few where it grows. Floats are rounded to bytes first.

    Args:
        frames: Frames, uint8 or floats in [0, 1].
        size: Side of the square in pixels.
        convention: Whose resizing it is.

    Raises:
        ValueError: There is no such convention.

    Examples:
        >>> resize_with_pad(torch.ones(3, 480, 640), 224).mean()  # 168 of 224 rows are picture
        tensor(0.7500)
    """
    check_convention(convention)
    height, width = frames.shape[-2:]
    if (height, width) == (size, size):
        return frames
    rows, columns = _fitted(height, width, size, convention)
    flat = frames.reshape(-1, *frames.shape[-3:])
    if convention == "openpi":
        small = F.interpolate(_as_bytes(flat).cpu(), (rows, columns), mode="bilinear", antialias=True)
        flat = small.to(frames.device) if frames.dtype == torch.uint8 else small.to(frames) / 255
    else:
        floats = flat.float() / 255 if frames.dtype == torch.uint8 else flat
        floats = F.interpolate(floats, (rows, columns), mode="bilinear", align_corners=False).clamp(0, 1)
        flat = _as_bytes(floats) if frames.dtype == torch.uint8 else floats
    top, left = (size - rows) // 2, (size - columns) // 2
    flat = F.pad(flat, (left, size - columns - left, top, size - rows - top))
    return flat.reshape(*frames.shape[:-2], size, size)


def _fitted(height: int, width: int, size: int, convention: Convention) -> tuple[int, int]:
    """Rows and columns of a picture that fills the square on its longer side."""
    if convention == "internvla_a1":
        scale = size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    ratio = max(width / size, height / size)
    return max(1, int(height / ratio)), max(1, int(width / ratio))


def _as_bytes(frames: Tensor) -> Tensor:
    return frames if frames.dtype == torch.uint8 else (frames * 255).round().to(torch.uint8)
