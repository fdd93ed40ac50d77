"""Frames as a vision tower takes them: resized, normalised, cut into patches."""

import math
from typing import TypeAlias

import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from moteur.recipes.config import InternVLVision, Qwen3VLVision

ImageGrid: TypeAlias = tuple[tuple[int, int], ...]
"""Patches of each view, (rows, columns)."""


class Qwen3VLPatches:
    """Patches of Qwen3-VL: as many pixels as its processor's settings ask for, each patch repeated for every frame.

    Frames are resized bicubically with antialiasing, in floating point: nothing is rounded to 8 bits or clamped, so
    values overshoot a little beside sharp edges. This is what the image processor of `transformers` for tensors
    computes from floats; the one for PIL images rounds and clamps.

    Args:
        vision: Sizes of the tower, the limits of its processor among them.
    """

    def __init__(self, vision: Qwen3VLVision) -> None:
        self.vision = vision

    def __call__(
        self, frames: Float[Tensor, "batch view 3 height width"]
    ) -> tuple[Float[Tensor, "batch patches values"], ImageGrid]:
        """Patches of frames in [0, 1], in merge order, and how many rows and columns of them each view has."""
        vision, (batch, views) = self.vision, frames.shape[:2]
        height, width = self.fitted(*frames.shape[-2:])
        images = frames.flatten(0, 1)
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
        merged = rearrange(
            _normalised(images, vision),
            "(batch view) channel (rows my y) (columns mx x) -> batch (view rows columns my mx) channel y x",
            batch=batch,
            my=vision.merge,
            mx=vision.merge,
            y=vision.patch,
            x=vision.patch,
        )
        patches = repeat(
            merged,
            "batch patch channel y x -> batch patch (channel frame y x)",
            frame=vision.patch_frames,
        )
        return patches, ((height // vision.patch, width // vision.patch),) * views

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is resized to: near its own, whole merged patches, pixels within the limits.

        >>> from moteur.recipes.presets import preset
        >>> Qwen3VLPatches(preset("3B").vision).fitted(224, 224)  # 50,176 pixels are less than the least, 65,536
        (256, 256)
        """
        unit = self.vision.patch * self.vision.merge
        nearest = tuple(round(side / unit) * unit for side in (height, width))
        if math.prod(nearest) > self.vision.max_pixels:
            shrink = math.sqrt(height * width / self.vision.max_pixels)
            nearest = tuple(max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        elif math.prod(nearest) < self.vision.min_pixels:
            enlarge = math.sqrt(self.vision.min_pixels / (height * width))
            nearest = tuple(math.ceil(side * enlarge / unit) * unit for side in (height, width))
        return nearest[0], nearest[1]


class InternVLPatches:
    """Patches of InternViT: frames resized bilinearly to its square, less the mean, over the standard deviation.

    Args:
        vision: Sizes of the tower.
    """

    def __init__(self, vision: InternVLVision) -> None:
        self.vision = vision

    def __call__(
        self, frames: Float[Tensor, "batch view 3 height width"]
    ) -> tuple[Float[Tensor, "batch patches values"], ImageGrid]:
        """Patches of frames in [0, 1], row by row, and how many rows and columns of them each view has."""
        size, patch = self.vision.size, self.vision.patch
        batch, views = frames.shape[:2]
        images = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
        patches = rearrange(
            _normalised(images, self.vision),
            "(batch view) channel (rows y) (columns x) -> batch (view rows columns) (channel y x)",
            batch=batch,
            y=patch,
            x=patch,
        )
        return patches, ((size // patch, size // patch),) * views


def _normalised(
    images: Float[Tensor, "image 3 height width"], vision: Qwen3VLVision | InternVLVision
) -> Float[Tensor, "image 3 height width"]:
    mean, std = (images.new_tensor(value)[:, None, None] for value in (vision.mean, vision.std))
    return (images - mean) / std
