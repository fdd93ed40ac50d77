"""The 2B backbone: the tower beside transformers' own model, the raw door, and what is refused."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_model import random_inputs, randomised, toy_config, toy_config_2b
from transformers import InternVLConfig, InternVLModel, PreTrainedTokenizerFast

from moteur.recipes import InternVLAA1, InternVLAA1Config, Observation, Processor, preset
from moteur.recipes.backbones import InternVL3
from moteur.recipes.patches import InternVLPatches

WORDS = ["<pad>", "<unk>", "put", "the", "red", "block", "away"]


@pytest.fixture(scope="module")
def toy() -> InternVLAA1Config:
    return toy_config_2b()


@pytest.fixture(scope="module")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def frames(batch: int, height: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 2, 3, height, width), dtype=torch.uint8, generator=draw)


def test_image_tokens_equal_those_of_transformers_own_model(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    """The same weights in `InternVLModel`: its embedding of whole images, its pixel shuffle and its projector."""
    vision, backbone = toy.vision, model.backbone
    theirs = InternVLModel(
        InternVLConfig(
            vision_config=backbone.vision.config,
            text_config={
                "model_type": "qwen2",
                "hidden_size": toy.und.dim,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": 8,
            },
            downsample_ratio=1 / vision.merge,
        )
    ).eval()
    theirs.vision_tower.load_state_dict(backbone.vision.state_dict())
    names = {"norm": "layer_norm", "hidden": "linear_1", "output": "linear_2"}
    state = backbone.projector.state_dict()
    theirs.multi_modal_projector.load_state_dict(
        {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    )
    inputs = random_inputs(toy, 2, seed=1)
    side, patch = vision.size // vision.patch, vision.patch
    images = rearrange(
        inputs.pixel_values, "b (v h w) (c y x) -> (b v) c (h y) (w x)", h=side, w=side, y=patch, x=patch
    )
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=images)
        expected = getattr(features, "pooler_output", features)  # transformers 4.57 returns the tensor itself
        ours = backbone.images(inputs)
    torch.testing.assert_close(ours, rearrange(expected, "(b v) t d -> b (v t) d", b=2), rtol=0, atol=1e-6)


def test_valid_tokens_are_counted_and_the_instruction_is_scaled(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=2)
    valid = inputs.und_valid.clone()
    valid[1, 4:8] = False  # the second camera of the second sample
    stream = model.backbone(replace(inputs, und_valid=valid))
    for sample in range(2):
        assert stream.positions[0, sample][valid[sample]].tolist() == list(range(int(valid[sample].sum())))
    assert torch.equal(stream.following, valid.sum(1))
    embedded = model.backbone.text_embedding(inputs.input_ids[:, 12:])
    torch.testing.assert_close(stream.tokens[:, 12:], embedded * toy.und.dim**0.5)
    assert torch.equal(stream.tokens[:, :12], model.backbone.images(inputs))


@pytest.mark.parametrize("config", [toy_config(), toy_config_2b()], ids=["3B", "2B"])
def test_text_scaling_is_a_field_that_changes_the_instruction_alone(config: InternVLAA1Config) -> None:
    plain, scaled = (randomised(replace(config, text_scaling=scaling)).backbone for scaling in (False, True))
    scaled.load_state_dict(plain.state_dict())
    inputs = random_inputs(config, 2, seed=3)
    one, two = plain(inputs).tokens, scaled(inputs).tokens
    start = one.shape[1] - config.text_length
    assert torch.equal(one[:, :start], two[:, :start])
    torch.testing.assert_close(one[:, start:] * config.und.dim**0.5, two[:, start:])


def test_the_rotary_base_is_a_field_that_matters(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    other = randomised(replace(toy, rope_base=1_000_000.0))
    other.load_state_dict(model.state_dict())
    inputs, noise = random_inputs(toy, 2, seed=4), torch.zeros(2, toy.chunk, toy.action_dim)
    assert not torch.allclose(model.act(inputs, noise=noise), other.act(inputs, noise=noise))


def test_published_sizes_give_256_tokens_a_view_and_816_in_all(tokenizer: PreTrainedTokenizerFast) -> None:
    config = preset("2B")
    views = [frames(1, 480, 640, seed=0), frames(1, 224, 224, seed=1), None]
    inputs = Processor(config, tokenizer)(Observation(views, torch.randn(1, 14), ["put the red block away"]))
    assert inputs.image_grid == ((32, 32),) * 3
    assert inputs.pixel_values.shape == (1, 3 * 1024, 3 * 14 * 14)
    image, pad = config.token_ids.image, config.token_ids.pad
    assert inputs.input_ids.tolist() == [[image] * 768 + [2, 3, 4, 5, 6] + [pad] * 43]
    assert inputs.und_valid.tolist() == [[True] * 512 + [False] * 256 + [True] * 5 + [False] * 43]
    assert inputs.view_valid.tolist() == [[True, True, False]]
    assert inputs.state.shape == (1, 32)


def test_patches_are_the_resized_image_less_its_mean_over_its_deviation(toy: InternVLAA1Config) -> None:
    side, patch = 4, 8
    images = torch.rand(2, 3, 3, 16, 16)  # enlarged to 32 x 32
    pixels, grid = InternVLPatches(toy.vision)(images)
    assert grid == ((side, side),) * 3
    large = torch.nn.functional.interpolate(images.flatten(0, 1), (32, 32), mode="bilinear").unflatten(0, (2, 3))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        for row in range(side):
            for column in range(side):
                square = large[:, 1, channel, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                held = pixels[:, side**2 + row * side + column].unflatten(1, (3, patch, patch))[:, channel]
                torch.testing.assert_close(held, (square - mean) / std, rtol=0, atol=1e-6)


def test_the_raw_door_takes_cameras_of_any_size_and_absence(
    model: InternVLAA1, toy: InternVLAA1Config, tokenizer: PreTrainedTokenizerFast
) -> None:
    processor, noise = Processor(toy, tokenizer), torch.zeros(2, toy.chunk, toy.action_dim)
    views = [frames(2, 24, 32, seed=0), None, frames(2, 40, 20, seed=2)]
    valid = torch.tensor([[True, True, True], [True, True, False]])
    state = torch.randn(2, 3)
    inputs = processor(Observation(views, state, ["put the red block away", "the block"], view_valid=valid))
    assert inputs.view_valid.tolist() == [[True, False, True], [True, False, False]]
    assert inputs.und_valid.sum(1).tolist() == [4 + 4 + 5, 4 + 2]
    together = model.act(inputs, noise=noise)
    alone = processor(Observation([views[0][1:], None, None], state[1:], ["the block"]))
    torch.testing.assert_close(model.act(alone, noise=noise[1:]), together[1:], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("without_shape_checks")
def test_inputs_that_do_not_fit_the_tower_are_named(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=5)
    bad = {
        r"image_grid: expected 4 rows and columns of patches in every view, got .*\(4, 6\)": {
            "image_grid": ((4, 4), (4, 6), (4, 4)),
            "pixel_values": torch.zeros(2, 56, 192),
        },
        r"pixel_values: expected shape \(48, 192\), got \(48, 384\)": {"pixel_values": torch.zeros(2, 48, 384)},
        r"input_ids: expected at least 12 tokens for 3 views, got 9": {
            "input_ids": inputs.input_ids[:, :9],
            "und_valid": inputs.und_valid[:, :9],
        },
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            model.act(replace(inputs, **change))


def test_the_tower_computes_in_the_precision_of_its_weights(toy: InternVLAA1Config) -> None:
    stream = InternVL3(toy).to(torch.bfloat16)(random_inputs(toy, 1, seed=6))
    assert stream.tokens.dtype == torch.bfloat16
