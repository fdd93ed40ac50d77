"""What may enter the tokenizer: the range of an image's values."""

import torch
from jaxtyping import Float
from torch import Tensor

SLACK = 1e-3
"""How far beyond [-1, 1] rounding and interpolation may carry a value: an eighth of one step of an 8-bit image."""


def check_images(images: Float[Tensor, "*batch channel height width"]) -> None:
    """Raise unless every value is a number in [-1, 1], give or take `1e-3`.

    It reads the smallest and the largest value, which on an accelerator makes the host wait for the device. Call it
    once where images arrive, not in a loop. It cannot notice images left in [0, 1]: those are dark, but legal.

    Raises:
        ValueError: A value is outside the range, or is NaN.

    >>> check_images(torch.zeros(1, 3, 8, 8))
    >>> check_images(torch.full((1, 3, 8, 8), 255.0))
    Traceback (most recent call last):
    ValueError: images: values must lie in [-1, 1], got [255, 255] (scale frames in [0, 1] with 2 * frames - 1)
    """
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):
        raise ValueError(
            f"images: values must lie in [-1, 1], got [{low:g}, {high:g}] (scale frames in [0, 1] with 2 * frames - 1)"
        )


def range_is_free_to_check(images: Float[Tensor, "*batch channel height width"]) -> bool:
    """Whether looking at values costs no device wait and does not end up in, or break, a captured graph."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return images.device.type == "cpu" and not (tracing or torch.compiler.is_compiling())
