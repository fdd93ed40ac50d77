"""Haar patches: an image as the averages and differences of its 2 x 2 neighbourhoods, applied again and again."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

_SCALE = 0.5**0.5


def haar_patches(
    images: Float[Tensor, "batch channel height width"], *, patch: int
) -> Float[Tensor, "batch _ height_out width_out"]:
    r"""Turn each `patch` x `patch` square of an image into `patch`² channels, losing nothing.

    One level sends a 2 x 2 neighbourhood $a b / c d$ (rows above one another) to the four numbers
    $(a ± b ± c ± d) / 4$: the mean, then the difference between rows, between columns, and of both. That is the
    orthonormal Haar transform divided by two, so values in [-1, 1] stay in [-1, 1]. Each of the
    $\log_2$ `patch` levels is applied to all channels of the one before (a wavelet packet, not a pyramid).

    Args:
        images: Any real values; height and width multiples of `patch`.
        patch: Side of the square, a power of two. 1 changes nothing.

    Returns:
        `patch`² times the channels, 1/`patch` of the height and width. Channels are ordered band of the last level,
        ..., band of the first level, image channel; bands are mean, rows, columns, both.

    Raises:
        ValueError: `patch` is not a power of two, or does not divide height and width.

    Source: the wavelet patcher of the Cosmos Tokenizer, https://arxiv.org/abs/2501.03575, section 4.

    >>> haar_patches(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), patch=2)[0, :3].flatten().round(decimals=3)
    tensor([ 4., -2., -1.])
    """
    levels = _levels(patch)
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"images: height and width must be multiples of patch={patch}, got {height} x {width}")
    for _ in range(levels):
        pixels = rearrange(images, "batch channel (height i) (width j) -> i j batch channel height width", i=2, j=2)
        bands = rearrange(_butterfly(pixels), "i j batch channel height width -> batch (j i channel) height width")
        images = bands / 2
    return images


def haar_images(
    patches: Float[Tensor, "batch channel height width"], *, patch: int
) -> Float[Tensor, "batch _ height_out width_out"]:
    """Undo `haar_patches`: the same sums and differences, times four.

    Args:
        patches: Any real values; channels a multiple of `patch`².
        patch: Side of the square, a power of two. 1 changes nothing.

    Returns:
        1/`patch`² of the channels, `patch` times the height and width.

    Raises:
        ValueError: `patch` is not a power of two, or `patch`² does not divide the channels.

    >>> haar_images(torch.tensor([4.0, -2.0, -1.0, 0.0]).reshape(1, 4, 1, 1), patch=2).flatten().round(decimals=3)
    tensor([1., 3., 5., 7.])
    """
    levels = _levels(patch)
    if patches.shape[1] % patch**2:
        raise ValueError(f"patches: channels must be a multiple of patch²={patch**2}, got {patches.shape[1]}")
    for _ in range(levels):
        bands = rearrange(patches, "batch (j i channel) height width -> i j batch channel height width", i=2, j=2)
        patches = rearrange(
            2 * _butterfly(bands), "i j batch channel height width -> batch channel (height i) (width j)"
        )
    return patches


def _levels(patch: int) -> int:
    """How many levels make patches of this side."""
    if patch < 1 or patch & (patch - 1):
        raise ValueError(f"patch: must be a power of two (1, 2, 4, ...), got {patch}")
    return patch.bit_length() - 1


def _butterfly(
    pairs: Float[Tensor, "2 2 batch channel height width"],
) -> Float[Tensor, "2 2 batch channel height width"]:
    """One orthonormal step, along columns and then rows: (first ± second) / √2. Its own inverse.

    Halving sums would be rounder arithmetic; scaled products, added in this order, round as the released
    transform does, bit for bit in float32.
    """
    columns = torch.stack(_sum_and_difference(pairs[:, 0], pairs[:, 1]), dim=1)
    return torch.stack(_sum_and_difference(columns[0], columns[1]))


def _sum_and_difference(first: Tensor, second: Tensor) -> list[Tensor]:
    scaled = first * _SCALE
    return [torch.add(scaled, second, alpha=_SCALE), torch.add(scaled, second, alpha=-_SCALE)]
