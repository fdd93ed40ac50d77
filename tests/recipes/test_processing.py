"""From pictures of any size, a state and a sentence to what the model takes."""

import pytest
import torch
from resampling import ROUNDING, padded
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from toy_model import randomised, toy_config, toy_config_2b
from transformers import PreTrainedTokenizerFast

from moteur.recipes import Inputs, InternVLAA1Config, Processor, Targets, preset

WORDS = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "put", "the", "red", "block", "away"]
SIZES = [(480, 640), (300, 170), (224, 224)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture(scope="module")
def processor(toy: InternVLAA1Config, tokenizer: PreTrainedTokenizerFast) -> Processor:
    return Processor(toy, tokenizer)


def pictures(batch: int = 2, times: int = 2, height: int = 24, width: int = 32, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, times, 3, height, width), dtype=torch.uint8, generator=draw)


def made(processor: Processor, **change: object) -> Inputs:
    values = {
        "frames": [pictures(seed=view) for view in range(3)],
        "state": torch.arange(6.0).view(2, 3),
        "instructions": ["put the red block away", "the block"],
    }
    return processor(**(values | change))


def bytes_travelling(*halves: object) -> int:
    tensors = [value for half in halves for value in vars(half).values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in tensors)


def fitted_in_float64(view: Tensor, size: int) -> Tensor:
    """Every picture of a view in a black square, values from 0 to 1."""
    flat = view.flatten(0, 1).double().numpy()
    return torch.stack([torch.from_numpy(padded(image, size)) for image in flat]).unflatten(0, view.shape[:2])


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_words_become_padded_ids_and_missing_cameras_are_masked(
    variant: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = preset(variant)
    views = [pictures(2, 2, 48, 64), pictures(2, 2, 224, 224), None]
    inputs = Processor(config, tokenizer)(
        views,
        torch.arange(28.0).view(2, 14),
        ["put the red block away", "the unheard block"],
        view_valid=torch.tensor([[True, True, True], [False, True, True]]),
    )
    pad = config.token_ids.pad
    assert inputs.instruction.tolist() == [[5, 6, 7, 8, 9] + [pad] * 43, [6, 4, 8] + [pad] * 45]
    assert inputs.attention_mask.tolist() == [[True] * 5 + [False] * 43, [True] * 3 + [False] * 45]
    assert inputs.view_valid.tolist() == [[True, True, False], [False, True, False]]
    assert inputs.frames.shape == (2, 3, 2, 3, 224, 224)
    assert inputs.frames[:, 2].eq(255).all()
    assert torch.equal(inputs.frames[:, 1], views[1])
    assert torch.equal(inputs.state, torch.cat([torch.arange(28.0).view(2, 14), torch.zeros(2, 18)], dim=1))
    assert inputs.latents is None


def test_pictures_are_fitted_into_a_black_square(tokenizer: PreTrainedTokenizerFast) -> None:
    """Beside a float64 computation: floats to rounding, bytes to half a level."""
    views = [pictures(1, 2, *size, seed=view) for view, size in enumerate(SIZES)]
    processor, state = Processor(preset("3B"), tokenizer), torch.zeros(1, 14)
    stored = processor(views, state, ["the block"]).frames
    floats = processor([view.float() / 255 for view in views], state, ["the block"]).frames
    assert stored.dtype == torch.uint8
    assert floats.dtype == torch.float32
    assert torch.equal(stored[:, 2], views[2])
    for view, held, exact in zip(views, stored.unbind(1), floats.unbind(1), strict=True):
        expected = fitted_in_float64(view, 224)
        torch.testing.assert_close(exact.double(), expected / 255, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(held.double(), expected, rtol=0, atol=0.5 + 255 * ROUNDING)
        assert (held.double() - expected).abs().mean() <= 0.26  # rounding, not truncation: a quarter of a level


def test_at_the_sizes_of_the_release_a_sample_weighs_less_than_its_patches_did(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Three views of t-15, t and t+15 as bytes: at most 1.5 MB, where float patches alone took 4.7."""
    config = preset("3B")
    views = [pictures(1, 3, 480, 640, seed=view) for view in range(3)]
    inputs = Processor(config, tokenizer)([view[:, :2] for view in views], torch.zeros(1, 14), ["the block"])
    future = Processor(config, tokenizer).pictures(["future"] * 3, [view[:, 2:] for view in views], 1)
    targets = Targets(
        actions=torch.zeros(1, config.chunk, config.action_dim),
        valid_steps=torch.ones(1, config.chunk, dtype=torch.bool),
        valid_dims=torch.ones(1, config.action_dim, dtype=torch.bool),
        valid_samples=torch.ones(1, dtype=torch.bool),
        future_frames=future[:, :, 0],
        valid_future=torch.ones(1, 3, dtype=torch.bool),
    )
    pixels = 3 * 3 * 3 * 224 * 224
    assert pixels < bytes_travelling(inputs, targets) < 1.01 * pixels < 1.5e6


def test_bytes_and_unit_floats_are_the_same_pictures(processor: Processor, toy: InternVLAA1Config) -> None:
    side = toy.frame_size
    views = [pictures(height=side, width=side, seed=view) for view in range(3)]
    stored, floats = made(processor, frames=views), made(processor, frames=[view / 255 for view in views])
    mixed = made(processor, frames=[views[0], views[1] / 255, None])
    assert torch.equal(stored.frames.float() / 255, floats.frames)
    assert torch.equal(
        mixed.frames, torch.stack([views[0] / 255, views[1] / 255, torch.ones(2, 2, 3, side, side)], dim=1)
    )


def test_floats_of_black_and_white_alone_are_floats(processor: Processor) -> None:
    """An image processor that guesses takes a mask of zeros and ones for bytes, and shows the model black."""
    masks = [pictures(height=32, seed=view) > 127 for view in range(3)]
    floats = made(processor, frames=[mask.float() for mask in masks])
    stored = made(processor, frames=[mask.to(torch.uint8) * 255 for mask in masks])
    assert torch.equal(floats.frames, stored.frames.float() / 255)
    assert floats.frames.std() > 0.4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_of_any_float_format_are_taken(processor: Processor, dtype: torch.dtype) -> None:
    views = [(pictures(seed=view) / 255).to(dtype) for view in range(3)]
    inputs = made(processor, frames=views, state=torch.ones(2, 3, dtype=dtype))
    assert inputs.state.dtype == inputs.frames.dtype == torch.float32
    expected = made(processor, frames=[view.float() for view in views]).frames
    torch.testing.assert_close(inputs.frames, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("config", [toy_config(), toy_config_2b()], ids=["3B", "2B"])
def test_cameras_of_any_size_and_absence_lead_to_the_actions_of_each_sample_alone(
    config: InternVLAA1Config, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, processor, noise = randomised(config), Processor(config, tokenizer), torch.zeros(2, 4, 5)
    views = [pictures(seed=0), None, pictures(height=40, width=20, seed=2)]
    valid, state = torch.tensor([[True, True, True], [True, True, False]]), torch.randn(2, 3)
    inputs = processor(views, state, ["put the red block away", "the block"], view_valid=valid)
    together = model.act(inputs, noise=noise)
    alone = processor([views[0][1:], None, None], state[1:], ["the block"])
    torch.testing.assert_close(model.act(alone, noise=noise[1:]), together[1:], rtol=0, atol=1e-5)
    present = processor([view if view is None else view[:, 1:] for view in views], state, ["the", "block"])
    assert present.frames.shape[2] == 1


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": [pictures()] * 2}, "frames: expected 3 views, at least one of them there, got 2, 2 there"),
        ({"frames": [None] * 3}, "frames: expected 3 views, at least one of them there, got 3, 0 there"),
        ({"frames": [pictures()[:1], None, None]}, r"frames\[0\]: expected \(2, 2, 3, height, width\), got \(1, 2, "),
        ({"frames": [pictures(), pictures(times=3), None]}, r"frames\[1\]: expected \(2, 2, 3, .*, got \(2, 3, 3, "),
        ({"frames": [None, pictures()[:, :, :1], None]}, r"frames\[1\]: expected .*, got \(2, 2, 1, 24, 32\)"),
        ({"frames": [None, pictures().float(), None]}, r"frames\[1\]: expected floats in \[0, 1\], got .*255\]"),
        ({"frames": [None, pictures() / 255 - 1, None]}, r"frames\[1\]: expected floats in \[0, 1\], got .*\[-1, 0\]"),
        ({"frames": [None, pictures() * torch.nan, None]}, r"frames\[1\]: expected floats in \[0, 1\], got .*nan"),
        ({"frames": [None, pictures().int(), None]}, r"frames\[1\]: expected uint8 or floats in \[0, 1\], got .*int32"),
        ({"state": torch.zeros(2, 4)}, "state: expected at most 3 dimensions, got 4"),
        ({"instructions": ["the block"]}, r"instructions: expected a list of 2, one a sample, got \['the block'\]"),
        ({"instructions": "go"}, "instructions: expected a list of 2, one a sample, got 'go'"),
        ({"instructions": ["the", "put " * 6]}, r"instructions\[1\]: expected 1 to 5 tokens, got 6 of 'put put"),
        ({"instructions": ["the", ""]}, r"instructions\[1\]: expected 1 to 5 tokens, got 0 of ''"),
        ({"view_valid": torch.ones(2, 2).bool()}, r"view_valid: expected shape \(2, 3\), got \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(processor: Processor, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(processor, **change)
