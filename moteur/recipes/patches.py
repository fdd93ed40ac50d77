"""Frames as a vision tower takes them: resized, normalised, cut into patches."""

from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from moteur.recipes.config import InternVLVision, Qwen3VLVision
from moteur.recipes.extras import require

ImageGrid: TypeAlias = tuple[tuple[int, int], ...]
"""Patches of each view, (rows, columns)."""


class Qwen3VLPatches:
    """Patches of Qwen3-VL, by its own image processor: sizes follow its smallest and largest number of pixels.

    Args:
        vision: Sizes of the tower.
    """

    def __init__(self, vision: Qwen3VLVision) -> None:
        self.processor = require("transformers.models.qwen2_vl", extra="vlm").Qwen2VLImageProcessorPil(
            size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
            patch_size=vision.patch,
            temporal_patch_size=vision.patch_frames,
            merge_size=vision.merge,
            image_mean=list(vision.mean),
            image_std=list(vision.std),
            do_rescale=False,
        )

    def __call__(
        self, frames: Float[Tensor, "batch view 3 height width"]
    ) -> tuple[Float[Tensor, "batch patches values"], ImageGrid]:
        """Patches of frames in [0, 1], in merge order, and how many rows and columns of them each view has."""
        batch, views = frames.shape[:2]
        processed = self.processor(images=list(np.asarray(frames.flatten(0, 1))), return_tensors="pt")
        grid = tuple((rows, columns) for _, rows, columns in processed["image_grid_thw"][:views].tolist())
        return processed["pixel_values"].unflatten(0, (batch, -1)), grid


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
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.vision.mean, self.vision.std))
        patches = rearrange(
            (images - mean) / std,
            "(batch view) channel (rows y) (columns x) -> batch (view rows columns) (channel y x)",
            batch=batch,
            y=patch,
            x=patch,
        )
        return patches, ((size // patch, size // patch),) * views
