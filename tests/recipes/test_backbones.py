"""The understanding backbones beside `transformers`' own models, image processors and positions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from resampling import ROUNDING, bicubic_weights, bilinear_weights
from safetensors.torch import load, save_file
from torch import Tensor, nn
from toy_backbones import BEFORE_5, CONFIGS, Qwen2VLImageProcessor, qwen3_vl
from toy_model import random_inputs, randomised, toy_config, toy_config_2b
from transformers import InternVLConfig, InternVLModel, Qwen3VLVisionModel
from transformers.models.qwen3_vl import modeling_qwen3_vl

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Qwen3VLVision, preset
from moteur.recipes.backbones.internvl3 import InternVL3
from moteur.recipes.backbones.qwen3_vl import Qwen3VL, Qwen3VLTower
from moteur.recipes.backbones.stream import Stream

VIEWS = [None, [[True, True, True], [False, True, True]], [[True, False, True], [False, False, True]]]


def stream_of(model: InternVLAA1, inputs: Inputs) -> Stream:
    return model.context(inputs, None)[0]["und"]


# Qwen3-VL: the tower


@pytest.fixture
def sizes() -> Qwen3VLVision:
    return replace(toy_config().vision, dim=64, heads=2, depth=2)


def shaken(tower: nn.Module) -> nn.Module:
    """Weights large enough for attention, and with it positions and rotary angles, to matter."""
    torch.manual_seed(1)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.2)
    return tower


def their_tower(ours: Qwen3VLTower, *, dim: int) -> nn.Module:
    """The same weights in the tower of `transformers`."""
    sizes = ours.sizes
    theirs = Qwen3VLVisionModel(
        Qwen3VLVisionModel.config_class(
            depth=sizes.depth,
            hidden_size=sizes.dim,
            hidden_act="gelu_pytorch_tanh",
            intermediate_size=sizes.mlp_dim,
            num_heads=sizes.heads,
            in_channels=3,
            patch_size=sizes.patch,
            spatial_merge_size=sizes.merge,
            temporal_patch_size=sizes.patch_frames,
            out_hidden_size=dim,
            num_position_embeddings=sizes.positions,
            deepstack_visual_indexes=[],
        )
    )
    theirs.load_state_dict(ours.state_dict())
    spread = sizes.dim // sizes.heads // 2
    exponents = torch.arange(0, spread, 2, dtype=torch.float32) / spread
    theirs.rotary_pos_emb.inv_freq = 1.0 / sizes.rope_base**exponents
    return theirs


def tokens_and_gradients(tower: nn.Module, patches: Tensor, grid: int | None) -> dict[str, Tensor]:
    """What a tower makes of images, and the gradient of every parameter and patch."""
    patches = patches.clone().requires_grad_()
    if grid is None:
        tokens = tower(patches)
    else:
        output = tower(patches.flatten(0, 1), grid_thw=torch.tensor([[1, grid, grid]] * len(patches)))
        tokens = output[0] if isinstance(output, tuple) else output.pooler_output
        tokens = tokens.unflatten(0, (len(patches), -1))
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3)).to(tokens.dtype)
    named = {"patches": patches} | dict(tower.named_parameters())
    return {"tokens": tokens.detach()} | dict(
        zip(named, torch.autograd.grad((tokens * direction).sum(), list(named.values())), strict=True)
    )


def random_patches(sizes: Qwen3VLVision, grid: int) -> Tensor:
    return torch.randn(3, grid**2, 3 * sizes.patch_frames * sizes.patch**2, generator=torch.Generator().manual_seed(0))


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max().clamp(min=1), name


@pytest.mark.parametrize("grid", [2, 4, 6, 10])  # the table of learned positions has 4 rows and columns
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_tokens_and_gradients_are_those_of_transformers_tower(sizes: Qwen3VLVision, grid: int, base: float) -> None:
    ours = shaken(Qwen3VLTower(replace(sizes, rope_base=base), dim=24, grid=grid))
    patches = random_patches(sizes, grid)
    found = tokens_and_gradients(ours, patches, None)
    assert found["tokens"].shape == (3, (grid // 2) ** 2, 24)
    close(found, tokens_and_gradients(their_tower(ours, dim=24), patches, grid), 1e-5)


def unrounded(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation as complex numbers; that of `transformers` rounds queries and keys to float32."""

    def turned(x: Tensor) -> Tensor:
        real, imaginary = x.chunk(2, dim=-1)
        half = x.shape[-1] // 2
        turn = torch.complex(cos[:, None, :half], sin[:, None, :half]).to(torch.complex128)
        product = torch.complex(real, imaginary) * turn
        return torch.cat([product.real, product.imag], dim=-1)

    return turned(query), turned(key)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 has float32 positions in a float64 tower")
@pytest.mark.parametrize("grid", [2, 4])  # whole steps through the table: float32 weights of neighbours are exact
def test_in_float64_the_towers_agree_to_the_last_digits(
    sizes: Qwen3VLVision, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_qwen3_vl, "apply_rotary_pos_emb_vision", unrounded)
    ours = shaken(Qwen3VLTower(sizes, dim=24, grid=grid)).double()
    theirs = their_tower(ours, dim=24).double()
    theirs.load_state_dict(ours.state_dict())
    patches = random_patches(sizes, grid).double()
    found, expected = tokens_and_gradients(ours, patches, None), tokens_and_gradients(theirs, patches, grid)
    close(found, expected, 1e-13)


def test_the_tower_has_the_parameters_of_transformers_with_their_initial_spread() -> None:
    with torch.device("meta"):
        ours = Qwen3VLTower(preset("3B").vision, dim=2048, grid=16)
        theirs = their_tower_of_the_release()
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    drawn = Qwen3VLTower(replace(toy_config().vision, dim=64), dim=24, grid=4)
    for name, parameter in drawn.state_dict().items():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            assert abs(parameter.mean()) < 0.002, name
        else:
            assert parameter.eq(1.0 if "norm" in name and name.endswith("weight") else 0.0).all(), name


def test_the_projection_of_patches_is_called_and_is_the_convolution_that_its_weights_have_the_shape_of(
    sizes: Qwen3VLVision,
) -> None:
    """So that hooks act, and an adapter in its place is called."""
    tower = shaken(Qwen3VLTower(sizes, dim=24, grid=4))
    patches, projection = random_patches(sizes, 4), tower.patch_embed["proj"]
    before = tower(patches)
    seen: list[Tensor] = []
    hook = projection.register_forward_hook(lambda _module, _args, output: seen.append(output) or 2 * output)
    changed = tower(patches)
    hook.remove()
    kernel = (sizes.patch_frames, sizes.patch, sizes.patch)
    squares = patches.reshape(-1, 3, *kernel)
    convolved = F.conv3d(squares, projection.weight, projection.bias, stride=kernel).flatten(1)
    torch.testing.assert_close(seen[0].flatten(0, 1), convolved, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(changed, before)
    tower.patch_embed["proj"] = nn.Sequential(projection, nn.Identity())
    assert torch.equal(tower(patches), before)


def test_a_tensor_of_the_tower_that_a_checkpoint_lacks_is_drawn_from_the_seed(tmp_path: Path) -> None:
    model, name = InternVLAA1(toy_config()), "backbone.vision.pos_embed.weight"
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    stored = load(path.read_bytes())  # a copy: the file is written over
    del stored[name]
    save_file(stored, path)
    with pytest.warns(UserWarning, match="strict=False"):
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False)
    assert loaded.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.3)
    assert all(torch.equal(loaded.state_dict()[other], value) for other, value in stored.items())


def their_tower_of_the_release() -> nn.Module:
    """Qwen3-VL-2B's tower without DeepStack, as `transformers` configures it."""
    return Qwen3VLVisionModel(
        Qwen3VLVisionModel.config_class(
            depth=24,
            hidden_size=1024,
            intermediate_size=4096,
            num_heads=16,
            out_hidden_size=2048,
            deepstack_visual_indexes=[],
        )
    )


# Qwen3-VL: patches


def qwen_of(side: int, *, pixels: int, patch: int = 16) -> Qwen3VL:
    """A backbone for frames of `side` pixels that are resized to `pixels` in all."""
    limits = {"min_pixels": pixels, "max_pixels": pixels}
    vision = replace(toy_config().vision, patch=patch, mean=(0.48, 0.5, 0.41), std=(0.27, 0.5, 0.3), **limits)
    return Qwen3VL(replace(toy_config(), frame_size=side, vision=vision))


def cut(images: Tensor, patch: int, merge: int = 2, frames: int = 2) -> Tensor:
    """Squares of patches in blocks of `merge`x`merge`, one slice after another."""
    held, block = [], patch * merge
    for top in range(0, images.shape[-2], block):
        for left in range(0, images.shape[-1], block):
            for y in range(top, top + block, patch):
                for x in range(left, left + block, patch):
                    square = images[..., y : y + patch, x : x + patch]
                    held.append(torch.stack([square] * frames, dim=-3).flatten(-4))
    return torch.stack(held, dim=-2)


@pytest.mark.parametrize(("side", "pixels", "large"), [(64, 4096, 64), (56, 4096, 64), (224, 65_536, 256)])
def test_patches_keep_the_bits_of_pictures_normalised_on_the_cpu(side: int, pixels: int, large: int) -> None:
    """Mean and deviation as tensors and slices instead of axes: every float32 equal, not merely close."""
    backbone = qwen_of(side, pixels=pixels)
    frames = torch.rand(2, 3, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = frames.flatten(0, 1)
    if side != large:
        images = F.interpolate(images, (large, large), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (images.new_tensor(value)[:, None, None] for value in (backbone.sizes.mean, backbone.sizes.std))
    expected = cut(((images - mean) / std).unflatten(0, (2, 3)), 16)
    assert torch.equal(backbone.patchify(frames), expected)


@pytest.mark.parametrize("variant", ["toy", "3B"])
def test_patches_are_those_of_transformers_image_processor(variant: str) -> None:
    """Pictures of the tower's own size, for which their processor neither resizes nor rounds."""
    backbone = qwen_of(64, pixels=4096) if variant == "toy" else qwen_of(256, pixels=65_536)
    sizes, side = backbone.sizes, backbone.side
    frames = torch.rand(1, 2, 3, side, side, generator=torch.Generator().manual_seed(1))
    processor = Qwen2VLImageProcessor(
        patch_size=sizes.patch,
        temporal_patch_size=sizes.patch_frames,
        merge_size=sizes.merge,
        image_mean=list(sizes.mean),
        image_std=list(sizes.std),
        do_rescale=False,
        do_resize=False,
        do_convert_rgb=False,
    )
    output = processor(list(frames[0].numpy()), return_tensors="np", input_data_format="channels_first")
    assert output["image_grid_thw"].tolist() == [[1, side // sizes.patch, side // sizes.patch]] * 2
    theirs = output["pixel_values"].reshape(1, 2, -1, backbone.patchify(frames).shape[-1])
    np.testing.assert_allclose(backbone.patchify(frames).numpy(), theirs, rtol=0, atol=2**-22)  # values up to 4


@pytest.mark.parametrize(("side", "pixels", "large"), [(64, 1024, 32), (90, 4096, 64), (224, 65_536, 256)])
def test_resizing_is_bicubic_and_looks_at_every_pixel(device: torch.device, side: int, pixels: int, large: int) -> None:
    backbone = qwen_of(side, pixels=pixels).to(device)
    assert backbone.side == large
    frames = torch.rand(1, 1, 3, side, side, dtype=torch.float64, device=device)
    weights = bicubic_weights(side, large)
    whole = torch.from_numpy(weights @ frames[0, 0].cpu().numpy() @ weights.T)
    mean, std = (
        torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (backbone.sizes.mean, backbone.sizes.std)
    )
    expected = cut((whole - mean) / std, 16)
    torch.testing.assert_close(backbone.patchify(frames)[0, 0].cpu(), expected, rtol=0, atol=1e-12)
    coarse = backbone.patchify(frames.float())[0, 0].cpu().double()
    torch.testing.assert_close(coarse, expected, rtol=0, atol=ROUNDING / 0.27)


def test_resized_floats_are_not_rounded_to_eight_bits(device: torch.device) -> None:
    backbone = qwen_of(224, pixels=65_536).to(device)
    ramp = torch.linspace(0.5, 0.501, 224, device=device).expand(1, 1, 3, 224, 224)  # a quarter of an 8-bit level
    values = backbone.patchify(ramp).unflatten(-1, (3, 2, 16, 16))[
        0, 0, :, 1, 0, 0
    ]  # green, in the patches' first rows
    line = torch.cat([values[block * 4 + column] for block in range(8) for column in range(2)])
    steps = line[8:-8].diff()  # away from the ends a cubic kernel reproduces a straight line
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * 0.001 / 223 * 224 / 256), rtol=0, atol=8 * 2**-24)


# Qwen3-VL: positions


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 finds the pictures in the ids, with other arguments")
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("side", [32, 64])  # 2x2 and 4x4 image tokens
def test_positions_are_those_of_transformers(views: list | None, side: int) -> None:
    config = CONFIGS["3B"]
    config = replace(config, frame_size=side, vision=replace(config.vision, min_pixels=side**2, max_pixels=side**2))
    model = InternVLAA1(config)
    inputs = random_inputs(config, 2, seed=2)
    valid = None if views is None else torch.tensor(views)
    stream = stream_of(model, replace(inputs, view_valid=valid))
    grid = side // config.vision.patch
    image = config.token_ids.image
    marked = [config.token_ids.vision_start, *[image] * (grid // 2) ** 2, config.token_ids.vision_end]
    ids = torch.cat([torch.tensor(marked * 3).expand(2, -1), inputs.instruction], dim=1)
    seen = torch.ones(2, 3, dtype=torch.bool) if valid is None else valid
    mask = torch.cat([seen.repeat_interleave(len(marked), dim=1), inputs.attention_mask], dim=1)
    expected, deltas = qwen3_vl().model.get_rope_index(
        ids, (ids == image).int(), image_grid_thw=torch.tensor([[1, grid, grid]] * int(seen.sum())), attention_mask=mask
    )
    assert torch.equal(stream.valid, mask)
    assert torch.equal(stream.positions[:, mask], expected[:, mask])
    assert torch.equal(stream.following, deltas[:, 0] + mask.sum(1))


@pytest.mark.parametrize("config", [toy_config(), toy_config_2b()], ids=["3B", "2B"])
def test_without_masks_one_row_of_positions_stands_for_the_batch(config: InternVLAA1Config) -> None:
    model, inputs = randomised(config), random_inputs(config, 2, seed=2)
    bare = stream_of(model, replace(inputs, view_valid=None, attention_mask=None))
    full = stream_of(model, replace(inputs, attention_mask=torch.ones_like(inputs.attention_mask)))
    assert bare.valid is None
    assert full.valid.all()
    assert torch.equal(bare.positions.expand_as(full.positions), full.positions)
    assert torch.equal(bare.following.expand(2), full.following)
    assert torch.equal(bare.tokens, full.tokens)


# InternVL3


@pytest.fixture(scope="module")
def internvl() -> InternVLAA1:
    return randomised(toy_config_2b())


def test_image_tokens_of_the_2b_backbone_are_those_of_transformers(internvl: InternVLAA1) -> None:
    """The same weights in `InternVLModel`: its embedding of whole images, its pixel shuffle and its projector."""
    config, backbone = internvl.config, internvl.backbone
    theirs = InternVLModel(
        InternVLConfig(
            vision_config=backbone.vision.config,
            text_config={
                "model_type": "qwen2",
                "hidden_size": config.und.dim,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": 8,
            },
            downsample_ratio=1 / config.vision.merge,
        )
    ).eval()
    theirs.vision_tower.load_state_dict(backbone.vision.state_dict())
    names = {"norm": "layer_norm", "hidden": "linear_1", "output": "linear_2"}
    state = backbone.projector.state_dict()
    theirs.multi_modal_projector.load_state_dict(
        {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    )
    frames = random_inputs(config, 2, seed=1).frames[:, :, 1]
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=backbone.patchify(frames).flatten(0, 1))
        expected = getattr(features, "pooler_output", features)  # transformers 4.57 returns the tensor itself
        ours = backbone(frames)
    torch.testing.assert_close(ours.flatten(0, 1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("views", VIEWS)
def test_the_2b_stream_is_views_then_scaled_words_at_counted_positions(
    internvl: InternVLAA1, views: list | None
) -> None:
    config, inputs = internvl.config, random_inputs(internvl.config, 2, seed=2)
    seen = torch.ones(2, 3, dtype=torch.bool) if views is None else torch.tensor(views)
    stream = stream_of(internvl, replace(inputs, view_valid=None if views is None else seen))
    valid = torch.cat([seen.repeat_interleave(4, dim=1), inputs.attention_mask], dim=1)
    assert torch.equal(stream.valid, valid)
    for sample in range(2):
        assert stream.positions[0, sample][valid[sample]].tolist() == list(range(int(valid[sample].sum())))
    assert torch.equal(stream.following, valid.sum(1))
    embedded = internvl.backbone.text_embedding(inputs.instruction)
    torch.testing.assert_close(stream.tokens[:, 12:], embedded * config.und.dim**0.5)
    frames = torch.where(seen[:, :, None, None, None], inputs.frames[:, :, 1], 0)
    assert torch.equal(stream.tokens[:, :12], internvl.backbone(frames).flatten(1, 2))


@pytest.mark.parametrize(("side", "size"), [(32, 32), (16, 32), (224, 448)])
def test_pixels_of_the_2b_tower_keep_the_bits_of_pictures_normalised_on_the_cpu(side: int, size: int) -> None:
    config = toy_config_2b()
    backbone = InternVL3(replace(config, frame_size=side, vision=replace(config.vision, size=size)))
    frames = torch.rand(2, 3, 3, side, side, generator=torch.Generator().manual_seed(4))
    large = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    mean, std = (large.new_tensor(value)[:, None, None] for value in (config.vision.mean, config.vision.std))
    found = backbone.patchify(frames)
    assert torch.equal(found, ((large - mean) / std).unflatten(0, (2, 3)))
    weights = bilinear_weights(side, size)
    whole = weights @ frames[1, 2].double().numpy() @ weights.T
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (whole[channel] - mean) / std
        np.testing.assert_allclose(found[1, 2, channel].double().numpy(), expected, rtol=0, atol=ROUNDING / 0.22)


@pytest.mark.parametrize("config", [toy_config(), toy_config_2b()], ids=["3B", "2B"])
def test_a_backbone_computes_in_the_precision_of_its_weights(config: InternVLAA1Config) -> None:
    inputs = random_inputs(config, 1, seed=6)
    exact = stream_of(randomised(config), inputs).tokens
    half = stream_of(randomised(config).to(torch.bfloat16), inputs).tokens
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.05 * exact.norm()
