import math
from collections.abc import Callable

import pytest
import torch
from einops import EinopsError
from hypothesis import given, settings
from hypothesis import strategies as st

from moteur.tokenizers.haar import haar_images, haar_patches

GoldenTensors = Callable[[str], dict[str, torch.Tensor]]
# One level, written as a matrix: rows are mean, rows, columns, both; columns are the pixels a, b / c, d.
ONE_LEVEL = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 4


def slow_haar(images: torch.Tensor, patch: int) -> torch.Tensor:
    """The transform as one matrix product per level, in float64."""
    images = images.double()
    for _ in range(int(math.log2(patch))):
        batch, channel, height, width = images.shape
        pixels = images.reshape(batch, channel, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
        pixels = pixels.reshape(batch, 4, channel, height // 2, width // 2)
        images = torch.einsum("kp,bpchw->bkchw", ONE_LEVEL, pixels).flatten(1, 2)
    return images


@pytest.mark.parametrize("case", ["0", "1"])
def test_patches_equal_the_recorded_ones(golden_tensors: GoldenTensors, device: torch.device, case: str) -> None:
    cases = golden_tensors("cosmos_ci8x8/cases")
    patches = haar_patches(cases[f"{case}.image"].to(device), patch=4)
    torch.testing.assert_close(patches.cpu(), cases[f"{case}.haar"], rtol=0, atol=2e-7)


@given(
    patch=st.sampled_from([1, 2, 4, 8]),
    channels=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_patches_equal_the_matrix_and_lose_nothing(
    patch: int, channels: int, rows: int, columns: int, seed: int
) -> None:
    images = torch.randn(
        2, channels, rows * patch, columns * patch, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    patches = haar_patches(images, patch=patch)
    torch.testing.assert_close(patches, slow_haar(images, patch), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(haar_images(patches, patch=patch), images, rtol=1e-13, atol=1e-13)
    # Orthonormal up to the scale: each level divides the norm by two.
    torch.testing.assert_close(patches.norm(), images.norm() / patch, rtol=1e-13, atol=0)


def test_images_in_range_give_patches_in_range_and_the_bound_is_reached() -> None:
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert haar_patches(images.sign(), patch=4).abs().max() <= 1 + 1e-6
    constant = haar_patches(torch.ones(1, 1, 4, 4), patch=4).flatten()
    torch.testing.assert_close(constant, torch.eye(16)[0])


def test_gradient_is_the_transposed_transform() -> None:
    # An orthonormal transform times 1/4 has 1/16 of its inverse as its transpose.
    images = torch.randn(1, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 48, 2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((haar_patches(images, patch=4) * weights).sum(), images)
    torch.testing.assert_close(gradient, haar_images(weights, patch=4) / 16)


def test_half_precision_errs_by_a_few_of_its_own_roundings(device: torch.device) -> None:
    images = torch.rand(2, 3, 16, 16, device=device) * 2 - 1
    for dtype in (torch.bfloat16, torch.float16):
        low = images.to(dtype)
        patches = haar_patches(low, patch=4)
        assert patches.dtype == dtype
        # Eight roundings of numbers no larger than two, halved twice on the way.
        error = (patches.double() - slow_haar(low.cpu(), 4).to(device)).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    for patch in (0, 3, -4):
        with pytest.raises(ValueError, match=f"patch: expected a power of two, got {patch}"):
            haar_patches(torch.zeros(1, 3, 12, 12), patch=patch)


def test_sizes_that_do_not_divide_are_refused() -> None:
    for images in (torch.zeros(1, 3, 8, 6), torch.zeros(1, 3, 6, 8)):
        with pytest.raises(EinopsError, match=r"can't divide axis of length 3 in chunks of 2"):
            haar_patches(images, patch=4)
    with pytest.raises(EinopsError, match=r"can't divide axis of length 6 in chunks of 4"):
        haar_images(torch.zeros(1, 24, 2, 2), patch=4)
