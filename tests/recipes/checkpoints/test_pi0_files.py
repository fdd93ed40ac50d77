"""Checkpoints of π0 and π0.5: every key of the released models, each spelling of them, and the way back."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_pi0 import random_pi0, toy_pi0

from moteur.recipes import (
    Inputs,
    InternVLAA1,
    Pi0,
    Pi0Config,
    SigLIPVision,
    export_released,
    inspect_checkpoint,
    load_model,
    preset,
    use_released_precision,
)
from moteur.recipes.checkpoints.config_files import config_from_json, config_to_json, read_released_config, restated
from moteur.recipes.checkpoints.fresh import build_weightless
from moteur.recipes.checkpoints.keymap import released_keys, released_tensors
from moteur.recipes.config import ExpertSize

Variant = Literal["pi0", "pi05"]
VARIANTS = pytest.mark.parametrize("variant", ["pi0", "pi05"])
PI = "paligemma_with_expert."
WORDS, EMBEDDING = f"{PI}paligemma.lm_head.weight", f"{PI}paligemma.model.language_model.embed_tokens.weight"
HEAD = f"{PI}gemma_expert.lm_head.weight"
COUNTS = {"pi0": (777, 3_501_372_176), "pi05": (812, 3_616_757_520)}


def recorded(golden: Path, variant: Variant) -> dict[str, Any]:
    return json.loads((golden / f"released_shapes_{variant}.json").read_text())


def stored_tensors(model: Pi0) -> dict[str, Tensor]:
    """What openpi's converter writes."""
    named = released_tensors(model.state_dict(), model.config)
    tensors = {name: tensor.clone() for name, tensor in named.items()}
    width = model.config.act.dim
    return tensors | {HEAD: torch.randn(50, width, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def model(variant: Variant) -> Pi0:
    return random_pi0(toy_pi0(variant), dtype=torch.float32)


def write(folder: Path, tensors: dict[str, Tensor], **values: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def stated(config: Pi0Config) -> dict[str, object]:
    """Fields of LeRobot's `config.json`."""
    return {
        "type": config.variant,
        "chunk_size": config.chunk,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "tokenizer_max_length": config.text_length,
        "image_resolution": [config.frame_size, config.frame_size],
    }


def same(loaded: Pi0, model: Pi0) -> bool:
    one, other = loaded.state_dict(), model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Accounting


@VARIANTS
def test_every_released_key_is_held_in_its_shape_or_left_out_on_purpose(golden: Path, variant: Variant) -> None:
    released = {key: tuple(shape) for key, shape in recorded(golden, variant)["shapes"].items()}
    model, keys = build_weightless(Pi0, preset(variant), decoder=False), released_keys(preset(variant), released)
    held: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        held |= keys.shapes(name, tuple(tensor.shape))
    left = {key: shape for key, shape in released.items() if keys.unused(key)}
    assert held | left == released
    assert left == {HEAD: (257_152, 1024)}
    count, parameters = COUNTS[variant]
    assert len(held) + len(left) == len(released) == count
    assert sum(prod(shape) for shape in (held | left).values()) == parameters
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert ours + 257_152 * 1024 == parameters


@VARIANTS
def test_what_openpi_holds_in_float32_is_held_so(golden: Path, variant: Variant) -> None:
    config = replace(preset(variant), vocabulary=2, chunk=2)
    model, keys = build_weightless(Pi0, config, decoder=False), released_keys(config)
    formats = {}
    for name, parameter in use_released_precision(model).named_parameters():
        formats |= dict.fromkeys(keys.sources(name), parameter.dtype)
    wide = {key for key, dtype in formats.items() if dtype is torch.float32}
    assert wide == set(recorded(golden, variant)["float32_in_bfloat16_mode"])
    assert set(formats.values()) == {torch.float32, torch.bfloat16}


# The recorded models


def recorded_config(golden: Path, variant: Variant) -> Pi0Config:
    dims = json.loads((golden / variant / "dims.json").read_text())
    vision = dims["vision"]
    return replace(
        preset(variant),
        depth=dims["depth"],
        heads=dims["heads"],
        kv_heads=dims["kv_heads"],
        head_dim=dims["head_dim"],
        vlm=ExpertSize(dim=dims["vlm_dim"], mlp_dim=dims["vlm_mlp"]),
        act=ExpertSize(dim=dims["act_dim"], mlp_dim=dims["act_mlp"]),
        vocabulary=dims["vocab"],
        vision=SigLIPVision(
            depth=vision["depth"],
            dim=vision["hidden"],
            mlp_dim=vision["mlp"],
            heads=vision["heads"],
            size=vision["image"],
            patch=vision["patch"],
            norm_eps=1e-6,
        ),
        text_length=dims["prompt"],
        chunk=dims["chunk"],
        state_dim=dims["max_state_dim"],
        action_dim=dims["max_action_dim"],
    )


@VARIANTS
def test_a_recorded_model_loads_and_its_experts_read_what_was_recorded(
    golden: Path, variant: Variant, tmp_path: Path
) -> None:
    stored = load_file(golden / variant / "model.safetensors")
    folder = write(tmp_path / "recorded", stored, type=variant)
    model = Pi0.from_pretrained(folder, config=recorded_config(golden, variant))
    report = model.loading_report
    assert report is not None
    assert len(report.loaded) + len(report.unused) == len(stored)
    assert report.unused == ((f"model.{HEAD}", "no output of the model depends on it"),)
    case = load_file(golden / variant / "dropped_camera.safetensors")
    inputs = Inputs(
        frames=(case["in.images"][:, :, None] + 1) / 2,
        instruction=case["in.tokens"],
        attention_mask=case["in.token_masks"],
        view_valid=case["in.img_masks"],
        state=case["in.state"],
    )
    with torch.no_grad():
        joint = model.joint(inputs, case["train.noisy_actions"], case["in.time"])
    for name in ("vlm", "act"):
        valid = joint.streams[name].valid
        rows = torch.ones(joint.hidden[name].shape[:2], dtype=torch.bool) if valid is None else valid
        found, expected = joint.hidden[name][rows], case[f"train.{name}_out"][rows]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Spellings


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def other_embedding(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {EMBEDDING if name == WORDS else name: tensor for name, tensor in tensors.items()}


def both_embeddings(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As LeRobot saves them now: the second is not updated."""
    return with_prefix(other_embedding(tensors) | {WORDS: tensors[WORDS] + 1})


def other_times(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def spelled(name: str) -> str:
        if name.startswith("action_time_mlp_"):
            return name.removeprefix("action_")
        return f"action_{name}" if name.startswith("time_mlp_") else name

    return {spelled(name): tensor for name, tensor in tensors.items()}


SPELLINGS = [dict, with_prefix, other_embedding, both_embeddings, other_times]


@VARIANTS
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_loads_bit_for_bit_and_comes_back_byte_for_byte(
    model: Pi0, spelling: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    tensors = spelling(stored_tensors(model))
    folder = write(tmp_path / "original", tensors, **stated(model.config))
    loaded = Pi0.from_pretrained(folder, config=model.config)
    assert same(loaded, model)
    report = loaded.loading_report
    assert report is not None
    assert {*report.loaded, *(name for name, _ in report.unused)} == tensors.keys()
    outdated = {name: reason for name, reason in report.unused if not name.endswith(HEAD)}
    doubled = spelling is both_embeddings
    text = "an older copy of the text embedding, whose other name counts"
    assert outdated == ({f"model.{WORDS}": text} if doubled else {})
    copied = export_released(loaded, tmp_path / "back", original=folder)
    assert len(copied) == 1 + doubled
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    with torch.no_grad():
        loaded.action.action_in.bias.add_(1)
        loaded.backbone.text_embedding.weight.mul_(2)
        loaded.backbone.vision.blocks[1].attn["qkv"].weight[12:24].zero_()
    export_released(loaded, tmp_path / "trained", original=folder)
    trained = load_file(tmp_path / "trained/model.safetensors")
    place = "model." if spelling in {with_prefix, both_embeddings} else ""
    tower = f"{place}{PI}paligemma.model.vision_tower.vision_model.encoder.layers.1.self_attn."
    words = f"{place}{EMBEDDING if spelling in {other_embedding, both_embeddings} else WORDS}"
    expected = tensors | {
        f"{place}action_in_proj.bias": tensors[f"{place}action_in_proj.bias"] + 1,
        words: tensors[words] * 2,
        f"{tower}k_proj.weight": torch.zeros(12, 12),
    }
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], value) for name, value in expected.items())


@VARIANTS
def test_tensors_that_do_not_belong_and_other_sizes_are_named(model: Pi0, variant: Variant, tmp_path: Path) -> None:
    tensors = stored_tensors(model)
    folder = write(tmp_path / "more", tensors | {"value_head.weight": torch.zeros(1)}, type=variant)
    with pytest.raises(ValueError, match=r"(?s)unexpected \(1\): value_head.weight"):
        Pi0.from_pretrained(folder, config=model.config)
    folder = write(tmp_path / "wide", tensors, type=variant)
    with pytest.raises(
        ValueError, match=r"perhaps: max_action_dim in config.json or config= contradicts these tensors"
    ):
        Pi0.from_pretrained(folder, config=replace(model.config, action_dim=4))
    del tensors["action_in_proj.bias"]
    folder = write(tmp_path / "less", tensors, type=variant)
    with pytest.raises(ValueError, match=r"missing \(1\): action_in_proj.bias"):
        Pi0.from_pretrained(folder, config=model.config)


@pytest.mark.parametrize("variant", ["pi05"])
def test_the_wrong_class_and_options_are_refused(model: Pi0, variant: Variant, tmp_path: Path) -> None:
    folder = write(tmp_path / "pi", stored_tensors(model), type=variant)
    with pytest.raises(ValueError, match=r"source: expected an InternVLA-A1, got a π0 or π0.5 in"):
        InternVLAA1.from_pretrained(folder, config=model.config)
    with pytest.raises(ValueError, match=r"config: expected the pi05 variant, whose tensors .* holds, got pi0"):
        Pi0.from_pretrained(folder, config=toy_pi0("pi0"))
    with pytest.raises(ValueError, match="decoder: expected None or False for a model without foresight, got True"):
        Pi0.from_pretrained(folder, config=model.config, decoder=True)
    with pytest.raises(ValueError, match=r"config: expected the pi05 variant, whose tensors .* holds, got 3B"):
        Pi0.from_pretrained(folder, config=preset("3B"))
    assert isinstance(load_model(folder, config=model.config), Pi0)


# Configurations


def test_the_configuration_of_either_code_is_read() -> None:
    config, notes = read_released_config(
        {
            "action_dim": 32,
            "action_horizon": 15,
            "paligemma_variant": "gemma_2b",
            "action_expert_variant": "gemma_300m",
            "precision": "bfloat16",
        },
        "pi05",
    )
    assert (config, notes) == (replace(preset("pi05"), chunk=15), ())
    cameras = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 224, 224]} for name in ("top", "wrist")}
    config, notes = read_released_config(
        {
            "type": "pi0",
            "chunk_size": 50,
            "n_action_steps": 25,
            "num_inference_steps": 5,
            "tokenizer_max_length": 60,
            "image_resolution": [224, 224],
            "dtype": "float32",
            "input_features": {**cameras, "observation.state": {"type": "STATE", "shape": [7]}},
            "rtc_config": None,
            "use_relative_actions": False,
            "novel": 1,
        },
        "pi0",
    )
    assert config == replace(preset("pi0"), steps=5, text_length=60, views=2)
    assert notes == ("novel = 1 in config.json is unknown here and was ignored",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "pi0"}, "type: 'pi0' is the pi0 variant, and the tensors are those of pi05"),
        (
            {"type": "pi05", "paligemma_variant": "gemma_300m"},
            "paligemma_variant: expected 'gemma_2b', got 'gemma_300m'",
        ),
        ({"type": "pi05", "n_action_steps": 51}, "n_action_steps: expected at most chunk_size = 50, got 51"),
        ({"type": "pi05", "image_resolution": [224, 200]}, r"image_resolution: expected \[side, side\], got"),
        ({"action_horizon": 0}, "action_horizon: expected greater than 0, got 0"),
    ],
)
def test_contradictions_in_a_released_configuration_are_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_released_config(values, "pi05")


def test_an_export_states_its_numbers_in_the_form_of_the_original() -> None:
    config = replace(preset("pi0"), chunk=10)
    assert restated({"action_horizon": 50, "action_dim": 32}, config) == {"action_horizon": 10, "action_dim": 32}
    stated = restated({"type": "pi0", "n_action_steps": 50}, config)
    assert stated == {"type": "pi0", "n_action_steps": 10, "chunk_size": 10}


# Our own layout


@VARIANTS
def test_a_model_is_saved_and_loaded_bit_for_bit(model: Pi0, variant: Variant, tmp_path: Path) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(model.config)))) == model.config
    model.save_pretrained(tmp_path / "own")
    loaded = Pi0.from_pretrained(tmp_path / "own")
    assert same(loaded, model)
    assert loaded.config == model.config
    assert same(load_model(tmp_path / "own"), model)
    title = {"pi0": "π0", "pi05": "π0.5"}[variant]
    card = (tmp_path / "own/README.md").read_text(encoding="utf-8")
    assert re.search(rf"^# {re.escape(title)}, ", card, re.MULTILINE)
    assert "Pi0.from_pretrained" in card
    assert "InternVLA" not in card
    summary = inspect_checkpoint(tmp_path / "own")
    assert (summary.model, summary.released, summary.encoder) == (title, False, False)
    assert summary.usual_tokenizer == "google/paligemma-3b-pt-224"
    with pytest.raises(ValueError, match=r"source: expected an InternVLA-A1, got a π0 or π0.5 in"):
        InternVLAA1.from_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"config: expected that of a π0 or π0.5, got an InternVLA-A1"):
        Pi0.from_pretrained(tmp_path / "own", config=preset("tiny"))
    shutil.rmtree(tmp_path / "own")
