"""`config.json` of both layouts: known fields read strictly, unknown ones noted or refused, contradictions refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_model import toy_config

from moteur.flowmatch import BetaTime
from moteur.recipes import InternVLAA1, preset
from moteur.recipes.checkpoints.config_files import config_from_json, config_to_json, restated

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("field", "name"),
    [("action_dim", "max_action_dim"), ("state_dim", "max_state_dim"), ("foresight_cell", "scale_factor")],
)
def test_a_number_that_contradicts_the_tensors_is_named(
    field: str, name: str, model: InternVLAA1, released: Write
) -> None:
    other = replace(model.config, **{field: getattr(model.config, field) - 1})
    with pytest.raises(ValueError, match=rf"(?s)wrong shape.*perhaps: {name} in config.json or config= contradicts"):
        InternVLAA1.from_pretrained(released(model, input_features={}, output_features={}), config=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "moteur/internvla_a1"}, "version: expected 1 or 2, got None"),
        ({"n_action_steps": 9}, "n_action_steps: expected at most chunk_size = 4, got 9"),
        (
            {"qwen3_vl_variant": ..., "internvl_variant": "x"},
            "internvl_variant: 'x' belongs to 2B, and the tensors are",
        ),
        ({"dtype": "int8"}, r"dtype: expected 'bfloat16' or 'float32', got 'int8'"),
        ({"chunk_size": "50"}, "chunk_size: expected an integer, got '50'"),
        ({"max_state_dim": True}, "max_state_dim: expected an integer, got True"),
        ({"lambda_gen": None}, "lambda_gen: expected a number, got None"),
        ({"image_resolution": [224, 256]}, r"image_resolution: expected \[side, side\], got \[224, 256\]"),
        ({"time_sampling_offset": 0.5}, "scale, offset: expected scale > 0 and "),
        (
            {"output_features": {"action": {"shape": [6]}}},
            r"output_features.action.shape: expected at most max_action_dim = 5, got \[6\]",
        ),
        (
            {"input_features": {"observation.state": {}}},
            "input_features.observation.state.shape: expected a list",
        ),
        ({"input_features": [1]}, r"input_features: expected a mapping of fields, got \[1\]"),
        ({"lambda_gen": float("inf")}, "lambda_gen: expected a finite number, got inf"),
        ({"scale_factor": 0}, "scale_factor: expected greater than 0, got 0"),
    ],
)
def test_contradictions_in_a_released_configuration_are_errors(
    changes: dict, message: str, model: InternVLAA1, released: Write
) -> None:
    with pytest.raises(ValueError, match=message):
        InternVLAA1.from_pretrained(released(model, **changes), config=model.config)


def test_the_type_names_the_variant_and_must_agree_with_the_tensors(models: dict, released: Write) -> None:
    folder = released(models["2B"], type="qwena1")
    with pytest.raises(ValueError, match="type: 'qwena1' is the 3B variant, and the tensors are those of 2B"):
        InternVLAA1.from_pretrained(folder, config=models["2B"].config)


def test_sizes_other_than_the_released_ones_must_be_given(model: InternVLAA1, released: Write) -> None:
    folder = released(model, qwen3_vl_variant="qwen3_vl_2l")
    with pytest.raises(
        ValueError, match="qwen3_vl_variant: expected 'qwen3_vl_28l', got 'qwen3_vl_2l'; other sizes need"
    ):
        InternVLAA1.from_pretrained(folder)
    assert InternVLAA1.from_pretrained(folder, config=model.config).config == model.config


def test_an_unknown_type_is_noted_and_the_tensors_decide(models: dict, released: Write) -> None:
    for variant, kind in (("3B", "internvla_a1"), ("2B", ...)):
        folder = released(models[variant], name=variant, type=kind)
        report = InternVLAA1.from_pretrained(folder, config=models[variant].config).loading_report
        stated = None if kind is ... else kind
        assert report.notes == (
            f"type {stated!r} in config.json is unknown here, the tensors are those of the {variant} variant",
        )
        assert report.layout == f"released {variant}"


def test_unknown_fields_are_ignored_with_a_note_and_known_ones_without(model: InternVLAA1, released: Write) -> None:
    folder = released(model, novel_knob=3)
    report = InternVLAA1.from_pretrained(folder, config=model.config).loading_report
    assert report.notes == ("novel_knob = 3 in config.json is unknown here and was ignored",)
    folder = released(model, name="other", num_inference_steps=20)
    report = InternVLAA1.from_pretrained(folder, config=model.config).loading_report
    assert report.notes == ("steps is 3 as asked for, 20 in config.json",)
    folder = released(model, name="wide", dtype="bfloat16")
    loaded = InternVLAA1.from_pretrained(folder, config=model.config)
    assert loaded.dtype == torch.float32
    assert "config.json says bfloat16, the file holds torch.float32 and is kept so" in str(loaded.loading_report)
    loaded = InternVLAA1.from_pretrained(folder, config=model.config, dtype="released")
    assert (loaded.dtype, loaded.loading_report.notes) == (torch.bfloat16, ())


def test_an_export_states_every_number_that_is_not_the_variants_own() -> None:
    config = replace(preset("3B"), steps=7, chunk=30)
    stated = restated({"type": "qwena1", "chunk_size": 50, "n_action_steps": 40, "unknown": 1}, config)
    assert stated == {
        "type": "qwena1",
        "chunk_size": 30,
        "n_action_steps": 30,
        "unknown": 1,
        "num_inference_steps": 7,
    }
    assert restated({"type": "qwena1"}, preset("3B")) == {"type": "qwena1"}


def test_the_configuration_survives_json_field_by_field(any_model: InternVLAA1) -> None:
    for config in (any_model.config, any_model.config.without_foresight()):
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "qwena1"}, "type: expected 'moteur/internvla_a1' or 'moteur/pi0', got 'qwena1'"),
        ({"version": 3}, "version: expected 1 or 2, got 3"),
        ({"depht": 3}, "depht: unknown field, did you mean 'depth'"),
        ({"depth": ...}, "depth: expected a value, got none"),
        ({"depth": 2.0}, "depth: expected an integer, got 2.0"),
        ({"depth": True}, "depth: expected an integer, got True"),
        ({"rope_base": "1"}, "rope_base: expected a number, got '1'"),
        ({"qk_norm": 1}, "qk_norm: expected a boolean, got 1"),
        ({"action_reduction": "sum"}, "action_reduction: expected 'valid' or 'released', got 'sum'"),
        ({"rope_sections": [2, 1]}, "rope_sections\\[2\\]: expected a value, got none"),
        ({"rope_sections": 4}, "rope_sections: expected a list, got 4"),
        ({"rope_sections": [2, 1, 2]}, r"rope_sections: expected three numbers that sum to head_dim / 2 = 4, got"),
        ({"und": 24}, "und: expected a mapping of fields, got 24"),
        ({"und": {"dim": 24}}, "^und.mlp_dim: expected a value, got none$"),
        ({"vision": {"kind": []}}, r"vision.kind: expected one of 'Qwen3VLVision', 'InternVLVision', got"),
        ({"rope_base": float("nan")}, "rope_base: expected greater than 0, got nan"),
        ({"foresight_weight": float("nan")}, "foresight_weight: expected 0 or more, got nan"),
        (
            {"vision": {"kind": "Qwen3VLVision", "depth": "1"}},
            "vision.depth: expected an integer, got '1'",
        ),
        ({"vision": {"kind": "SigLIP"}}, r"vision.kind: expected one of 'Qwen3VLVision', 'InternVLVision', got"),
    ],
)
def test_a_configuration_file_that_is_not_ours_to_the_letter_is_refused(change: dict, message: str) -> None:
    values = {**config_to_json(toy_config()), **change}
    with pytest.raises(ValueError, match=message):
        config_from_json({name: value for name, value in values.items() if value is not ...})


def test_the_fields_of_another_tower_than_the_one_named_are_refused() -> None:
    values = config_to_json(toy_config())
    values["vision"]["kind"] = "InternVLVision"
    with pytest.raises(
        ValueError, match=r"vision\.(patch_frames|positions|deepstack|\w+_pixels|rope_base): unknown field"
    ):
        config_from_json(values)


@pytest.mark.parametrize(("clock", "reverse"), [("noise", False), ("data", True)])
def test_a_configuration_of_version_1_is_read(clock: str, reverse: bool) -> None:
    values = {**config_to_json(toy_config()), "version": 1}
    values["time"] = {**values["time"], "clock": clock}
    del values["time"]["reverse"]
    assert config_from_json(values) == replace(toy_config(), time=replace(BetaTime.released(), reverse=reverse))
    values["time"]["clock"] = "wall"
    with pytest.raises(ValueError, match=r"time.clock: expected 'noise' or 'data', got 'wall'"):
        config_from_json(values)
