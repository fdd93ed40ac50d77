"""The raw door down to the pixel: what the published settings make of uint8 frames, by a float64 computation beside."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moteur.recipes import Observation, Processor, preset
from moteur.recipes.patches import Qwen3VLPatches

WORDS = ["<unk>", "put", "the", "red", "block", "away"]
VISION = preset("3B").vision
# A float32 coordinate up to 640 errs by 640·2⁻²⁴ pixels a rounding, and is rounded a few times; pixels beside each
# other differ by 1 at most, and dividing by the deviation of 0.5 doubles.
ROUNDING = 2 * 4 * 640 * 2**-24


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def frames(height: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 2, 3, height, width), dtype=torch.uint8, generator=draw)


def linear(distance: float) -> float:
    return max(0.0, 1 - abs(distance))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -1/2, as every antialiasing library has it."""
    d = abs(distance)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bilinear_weights(old: int, new: int) -> np.ndarray:
    """A resized line from a line, as a matrix: two neighbours of each centre, the last pixel repeated at the ends."""
    weights = np.zeros((new, old))
    for row in range(new):
        centre = max((row + 0.5) * old / new - 0.5, 0.0)
        for pixel in range(int(centre), int(centre) + 2):
            weights[row, min(pixel, old - 1)] += linear(centre - pixel)
    return weights


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """The same with antialiasing: the kernel widens as the image shrinks, and weights inside the image sum to one."""
    stretch = max(old / new, 1.0)
    weights = np.array(
        [[cubic((pixel + 0.5 - (row + 0.5) * old / new) / stretch) for pixel in range(old)] for row in range(new)]
    )
    return weights / weights.sum(axis=1, keepdims=True)


def padded(image: np.ndarray, size: int = 224) -> np.ndarray:
    height, width = image.shape[-2:]
    rows, columns = round(height * size / max(height, width)), round(width * size / max(height, width))
    small = bilinear_weights(height, rows) @ image @ bilinear_weights(width, columns).T
    out = np.zeros((3, size, size))
    top, left = (size - rows) // 2, (size - columns) // 2
    out[:, top : top + rows, left : left + columns] = small
    return out


def patches(image: np.ndarray) -> list[np.ndarray]:
    """Squares of 16 pixels, in blocks of 2x2, each twice in time between channel and pixels."""
    held = []
    for top in range(0, image.shape[1], 32):
        for left in range(0, image.shape[2], 32):
            for y, x in ((0, 0), (0, 16), (16, 0), (16, 16)):
                square = image[:, top + y : top + y + 16, left + x : left + x + 16]
                held.append(np.stack([square, square], axis=1).ravel())
    return held


def test_raw_frames_and_an_instruction_become_what_the_reference_takes(tokenizer: PreTrainedTokenizerFast) -> None:
    views = [frames(480, 640, seed=0), frames(300, 170, seed=1), frames(224, 224, seed=2)]
    seen = torch.tensor([[True, False, True]])
    inputs = Processor(preset("3B"), tokenizer)(
        Observation(views, torch.randn(1, 14), ["put the red block away"], view_valid=seen)
    )
    enlarge = bicubic_weights(224, 256)
    expected = []
    for view in views:
        small = padded(view[0, 1].double().numpy() / 255)
        expected += patches((enlarge @ small @ enlarge.T - 0.5) / 0.5)
    assert inputs.image_grid == ((16, 16),) * 3
    assert inputs.pixel_values.dtype == torch.float32
    np.testing.assert_allclose(inputs.pixel_values[0].double().numpy(), np.stack(expected), rtol=0, atol=ROUNDING)
    image = [151652, *[151655] * 64, 151653]
    assert inputs.input_ids.tolist() == [image * 3 + [1, 2, 3, 4, 5] + [151643] * 43]
    assert inputs.und_valid.tolist() == [[True] * 66 + [False] * 66 + [True] * 66 + [True] * 5 + [False] * 43]
    assert torch.equal(inputs.view_valid, seen)
    for time in range(2):
        for view, held in zip(views, inputs.frames[0, :, time], strict=True):
            small = padded(view[0, time].double().numpy() / 255)
            np.testing.assert_allclose(held.double().numpy(), small, rtol=0, atol=ROUNDING / 2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 40)])
def test_shrinking_looks_at_every_pixel(device: torch.device, height: int, width: int) -> None:
    vision = replace(VISION, min_pixels=1024, max_pixels=1024)
    image = torch.rand(1, 1, 3, height, width, dtype=torch.float64, device=device)
    ours, grid = Qwen3VLPatches(vision)(image)
    rows, columns = (16 * side for side in grid[0])
    whole = bicubic_weights(height, rows) @ image[0, 0].cpu().numpy() @ bicubic_weights(width, columns).T
    expected = np.stack(patches((whole - 0.5) / 0.5))
    np.testing.assert_allclose(ours[0].cpu().numpy(), expected, rtol=0, atol=1e-12)


def test_floats_of_black_and_white_alone_are_floats(tokenizer: PreTrainedTokenizerFast) -> None:
    """An image processor that guesses takes a mask of zeros and ones for bytes, and shows the model black."""
    masks = [(frames(224, 224, seed=view) > 127) for view in range(3)]
    processor = Processor(preset("3B"), tokenizer)
    floats, bytes_ = (
        processor(Observation(held, torch.zeros(1, 14), ["the block"]))
        for held in ([mask.float() for mask in masks], [mask.byte() * 255 for mask in masks])
    )
    assert torch.equal(floats.pixel_values, bytes_.pixel_values)
    assert floats.pixel_values.std() > 0.5


def test_resized_floats_are_not_rounded_to_eight_bits(device: torch.device) -> None:
    ramp = torch.linspace(0.5, 0.501, 224, device=device).expand(1, 1, 3, 224, 224)  # a quarter of an 8-bit level
    pixels, _ = Qwen3VLPatches(VISION)(ramp)
    line = pixels.unflatten(2, (3, 2, 16, 16))[0, :, 0, 0, 0]  # patches of the first rows in merge order
    first = torch.cat([line[block * 4 + column] for block in range(8) for column in range(2)])
    inside = first[8:-8]  # away from the ends a cubic kernel reproduces a straight line
    steps = inside.diff()
    expected = 2 * 0.001 / 223 * 224 / 256
    torch.testing.assert_close(steps, torch.full_like(steps, expected), rtol=0, atol=8 * 2**-24)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (256, 256)),
        ((256, 256), (256, 256)),
        ((480, 640), (480, 640)),
        ((300, 100), (448, 160)),
        ((5000, 4000), (4576, 3648)),
        ((240, 16), (992, 96)),
    ],
)
def test_published_limits_lead_to_these_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Qwen3VLPatches(VISION).fitted(*size) == expected


@given(st.integers(8, 20_000), st.integers(8, 20_000))
def test_fitted_sizes_are_whole_merged_patches_within_the_published_limits(height: int, width: int) -> None:
    fitted = Qwen3VLPatches(VISION).fitted(height, width)
    assert all(side > 0 and side % 32 == 0 for side in fitted)
    assert 65_536 <= math.prod(fitted) <= 16_777_216
