"""Haar wavelet patches: a lossless, weight-free way to trade resolution for channels."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

_SCALE = 0.5**0.5


def haar_patches(
    images: Float[Tensor, "batch channel height width"], *, patch: int
) -> Float[Tensor, "batch _ height_out width_out"]:
    r"""Turn each `patch` x `patch` square of an image into `patch`² channels, without loss.

    One level maps a 2 x 2 neighbourhood $a b / c d$ to the four numbers $(a ± b ± c ± d) / 4$: the mean, then the
    difference between rows, between columns, and of both. This is the orthonormal Haar transform divided by two, so
    values in [-1, 1] stay in [-1, 1]. Each of the $\log_2$ `patch` levels applies to all channels of the previous one
    (a wavelet packet, not a pyramid).

    Args:
        images: Images of any range; height and width are multiples of `patch`.
        patch: Side of the square, a power of two. 1 changes nothing.

    Returns:
        `patch`² times the channels, 1/`patch` of the height and width. Channels are ordered band of the last level,
            ..., band of the first level, image channel; bands are mean, rows, columns, both.

    Source:
        The wavelet patcher of the Cosmos tokenizer, https://arxiv.org/abs/2501.03575, section 4.

    Examples:
        >>> haar_patches(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), patch=2)[0, :3].flatten().round(decimals=3)
        tensor([ 4., -2., -1.])
    """
    for _ in range(haar_levels(patch)):
        pixels = rearrange(images, "batch channel (height i) (width j) -> i j batch channel height width", i=2, j=2)
        bands = rearrange(_butterfly(pixels), "i j batch channel height width -> batch (j i channel) height width")
        images = bands / 2
    return images


def haar_images(
    patches: Float[Tensor, "batch channel height width"], *, patch: int
) -> Float[Tensor, "batch _ height_out width_out"]:
    """Invert `haar_patches`: the same sums and differences, times four.

    Examples:
        >>> haar_images(torch.tensor([4.0, -2.0, -1.0, 0.0]).reshape(1, 4, 1, 1), patch=2).flatten().round(decimals=3)
        tensor([1., 3., 5., 7.])
    """
    for _ in range(haar_levels(patch)):
        bands = rearrange(patches, "batch (j i channel) height width -> i j batch channel height width", i=2, j=2)
        patches = rearrange(
            2 * _butterfly(bands), "i j batch channel height width -> batch channel (height i) (width j)"
        )
    return patches


def haar_levels(patch: int) -> int:
    """Number of transform levels for patches of this side.

    Raises:
        ValueError: `patch` is not a power of two.
    """
    if patch < 1 or patch & (patch - 1):
        raise ValueError(f"patch: expected a power of two, got {patch}")
    return patch.bit_length() - 1


def _butterfly(
    pairs: Float[Tensor, "2 2 batch channel height width"],
) -> Float[Tensor, "2 2 batch channel height width"]:
    """One orthonormal step, along columns and then rows: (first ± second) / √2. Its own inverse.

    The scaled products are added in the order of the released transform, so that float32 results agree bit for bit.
    """
    columns = torch.stack(_sum_and_difference(pairs[:, 0], pairs[:, 1]), dim=1)
    return torch.stack(_sum_and_difference(columns[0], columns[1]))


def _sum_and_difference(first: Tensor, second: Tensor) -> list[Tensor]:
    scaled = first * _SCALE
    return [torch.add(scaled, second, alpha=_SCALE), torch.add(scaled, second, alpha=-_SCALE)]
