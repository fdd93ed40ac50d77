"""Saving and loading in our own layout: exactly what was saved, or an error."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_checkpoints import STATISTICS, states_equal, write_tensors
from toy_model import random_inputs, toy_config

from moteur.recipes import InternVLAA1, Targets, moved, use_released_precision
from moteur.recipes.checkpoints import config_from_json, config_to_json
from moteur.recipes.training import adamw, train_step
from moteur.tokenizers import save_weights


def outputs(model: InternVLAA1) -> list[torch.Tensor]:
    inputs = random_inputs(model.config, 2, seed=3)
    actions = model.act(inputs, generator=torch.Generator().manual_seed(4))
    imagined = model.imagine(inputs, decode=model.foresight.decoder is not None)
    return [actions, imagined.latents, *([] if imagined.images is None else [imagined.images])]


def test_a_saved_model_comes_back_bit_for_bit_with_its_configuration(any_model: InternVLAA1, tmp_path: Path) -> None:
    any_model.save_pretrained(tmp_path / "saved")
    loaded = InternVLAA1.from_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert loaded.config == any_model.config
    assert states_equal(loaded, any_model)
    assert all(torch.equal(one, other) for one, other in zip(outputs(any_model), outputs(loaded), strict=True))
    buffers = dict(loaded.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in any_model.named_buffers())
    frozen = {name for name, parameter in any_model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} != set()
    assert not loaded.training
    assert loaded.loading_report is not None
    assert loaded.loading_report.exact
    assert set(loaded.loading_report.loaded) == set(any_model.state_dict())


def test_a_model_trained_a_step_saved_and_loaded_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = InternVLAA1(toy_config())
    inputs = random_inputs(model.config, 2, seed=1)
    optimizer = adamw(model, rate=1e-2)
    targets = Targets(actions=torch.randn(2, model.config.chunk, model.config.action_dim))
    train_step(optimizer, model.loss(inputs, targets).total, rate=1e-2)
    model.eval().save_pretrained(tmp_path)
    loaded = InternVLAA1.from_pretrained(tmp_path)
    assert states_equal(loaded, model)
    assert all(torch.equal(one, other) for one, other in zip(outputs(model), outputs(loaded), strict=True))
    assert torch.equal(
        *(one.loss(inputs, targets, generator=torch.Generator().manual_seed(2)).total for one in (model, loaded))
    )


def test_mixed_number_formats_are_kept_as_they_were_saved(model: InternVLAA1, tmp_path: Path) -> None:
    mixed = use_released_precision(InternVLAA1(model.config))
    mixed.save_pretrained(tmp_path)
    loaded = InternVLAA1.from_pretrained(tmp_path)
    assert states_equal(loaded, mixed)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16, torch.float32}
    wide = InternVLAA1.from_pretrained(tmp_path, dtype=torch.float32)
    assert states_equal(wide, mixed.float())


def test_weights_go_to_the_device_that_is_asked_for(model: InternVLAA1, tmp_path: Path, device: torch.device) -> None:
    saved(model, tmp_path)
    for mapped in (False, True):
        loaded = InternVLAA1.from_pretrained(tmp_path, device=device, mapped=mapped)
        assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {device.type}
        inputs = moved(random_inputs(model.config, 2, seed=3), device)
        noise = torch.randn(2, model.config.chunk, model.config.action_dim, generator=torch.Generator().manual_seed(4))
        expected = copy.deepcopy(model).to(device).act(inputs, noise=noise.to(device))
        assert torch.equal(loaded.act(inputs, noise=noise.to(device)), expected)


def test_the_decoder_comes_back_unless_it_is_not_wanted(model: InternVLAA1, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert InternVLAA1.from_pretrained(tmp_path).foresight.decoder is not None
    loaded = InternVLAA1.from_pretrained(tmp_path, decoder=False)
    assert loaded.foresight.decoder is None
    left_out = {name for name in model.state_dict() if name.startswith("foresight.decoder.")}
    assert dict(loaded.loading_report.unused) == dict.fromkeys(left_out, "Cosmos decoder, not asked for")
    assert loaded.loading_report.exact


def test_a_decoder_that_was_not_saved_can_come_from_a_tokenizer_folder(model: InternVLAA1, tmp_path: Path) -> None:
    InternVLAA1.from_pretrained(saved(model, tmp_path / "whole"), decoder=False).save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=r"(?s)missing \(84\).*say with cosmos= where it is"):
        InternVLAA1.from_pretrained(tmp_path / "part", decoder=True)
    save_weights(tmp_path / "cosmos.safetensors", encoder=model.foresight.encoder, decoder=model.foresight.decoder)
    loaded = InternVLAA1.from_pretrained(tmp_path / "part", decoder=True, cosmos=tmp_path / "cosmos.safetensors")
    assert states_equal(loaded, model)
    assert {name for name, _ in loaded.loading_report.elsewhere} == {
        name for name in model.state_dict() if name.startswith("foresight.decoder.")
    }
    with pytest.raises(ValueError, match="cosmos: expected None, the model needs nothing that is not in its own file"):
        InternVLAA1.from_pretrained(tmp_path / "part", decoder=False, cosmos=tmp_path / "cosmos.safetensors")


def test_a_model_without_foresight_is_saved_and_loaded(tmp_path: Path) -> None:
    model = InternVLAA1(toy_config().without_foresight()).eval()
    model.save_pretrained(tmp_path)
    loaded = InternVLAA1.from_pretrained(tmp_path)
    assert loaded.config.gen is None
    assert states_equal(loaded, model)


def test_statistics_go_with_the_weights_exactly(model: InternVLAA1, tmp_path: Path) -> None:
    loaded = InternVLAA1.from_pretrained(saved(model, tmp_path))
    assert loaded.statistics == {}
    loaded.statistics = {"arm": {"state": {"mean": [1 / 3, 0.1]}}, **STATISTICS}
    loaded.save_pretrained(tmp_path)
    again = InternVLAA1.from_pretrained(tmp_path)
    assert again.statistics == loaded.statistics
    again.statistics = {}
    again.save_pretrained(tmp_path)
    assert not (tmp_path / "stats.json").exists()
    again.statistics = [{"arm": {}}]
    with pytest.raises(ValueError, match="statistics: expected an object from robot to fields, got list"):
        again.save_pretrained(tmp_path)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)
    again.statistics = {"arm": [1.0]}
    with pytest.raises(ValueError, match=r"statistics of 'arm': expected an object, got \[1.0\]"):
        again.save_pretrained(tmp_path)
    (tmp_path / "stats.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"stats.json: .*expected a JSON object, got list"):
        InternVLAA1.from_pretrained(tmp_path)


def test_loading_leaves_the_global_random_state_alone(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    before = torch.get_rng_state()
    InternVLAA1.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_does_not_depend_on_its_file(model: InternVLAA1, tmp_path: Path) -> None:
    loaded = InternVLAA1.from_pretrained(saved(model, tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # in place: a mapping of the file would follow
    assert states_equal(loaded, model)


def test_a_mapped_model_is_the_same_and_neither_training_nor_saving_changes_the_file(
    model: InternVLAA1, tmp_path: Path
) -> None:
    path = saved(model, tmp_path) / "model.safetensors"
    before = path.read_bytes()
    loaded = InternVLAA1.from_pretrained(tmp_path, mapped=True)
    assert states_equal(loaded, model)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before
    loaded.save_pretrained(tmp_path)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path, mapped=True), loaded)
    assert InternVLAA1.from_pretrained(tmp_path, mapped=True, dtype=torch.float64).dtype == torch.float64


def test_shards_load_as_one_file_does(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    write_tensors(tmp_path, tensors, shards=3)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)


def test_a_tensor_too_many_or_too_few_is_an_error_unless_asked_for(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = {"action.action_in.weight", "action.action_in.bias", "mot.experts.act.layers.1.mlp.up.weight"}
    save_file({"value_head.weight": torch.zeros(3)} | {n: t for n, t in tensors.items() if n not in lost}, path)
    with pytest.raises(ValueError, match=r"(?s)missing \(3\): .*action\.action_in\.bias.*unexpected \(1\): value_head"):
        InternVLAA1.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"(?s)strict=False.*missing \(3\).*value_head"):
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False, seed=5)
    assert set(loaded.loading_report.fresh) == lost
    assert loaded.loading_report.unexpected == ("value_head.weight",)
    kept = {name: tensor for name, tensor in loaded.state_dict().items() if name not in lost}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in kept.items())
    with pytest.warns(UserWarning, match="strict=False"):
        again = InternVLAA1.from_pretrained(tmp_path, strict=False, seed=5)
    assert states_equal(loaded, again)
    with pytest.warns(UserWarning, match="strict=False"):
        other = InternVLAA1.from_pretrained(tmp_path, strict=False, seed=6)
    assert not torch.equal(loaded.action.action_in.weight, other.action.action_in.weight)


def test_a_wrong_shape_is_an_error_even_when_not_strict(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    larger = replace(model.config, action_dim=6)
    for strict in (True, False):
        with pytest.raises(
            ValueError, match=r"wrong shape \(3\): .*action_in.weight \(expected \(28, 6\), got \(28, 5\)\)"
        ):
            InternVLAA1.from_pretrained(tmp_path, config=larger, strict=strict)
    fewer_steps = InternVLAA1.from_pretrained(tmp_path, config=replace(model.config, steps=1))
    assert fewer_steps.config.steps == 1
    assert "the one asked for" in str(fewer_steps.loading_report)


def test_integers_are_no_weights(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "action.state_in.bias": torch.zeros(28, dtype=torch.int64)}, path)
    with pytest.raises(
        ValueError, match=r"state_in.bias \(expected floating point of 16 to 64 bits, got torch.int64\)"
    ):
        InternVLAA1.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_weights_cannot_have_is_refused(
    dtype: str | torch.dtype, model: InternVLAA1, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"dtype: expected .*'released' or None, got"):
        InternVLAA1.from_pretrained(saved(model, tmp_path), dtype=dtype)


def test_saving_refuses_a_configuration_that_is_not_the_models(model: InternVLAA1, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config: expected None or the configuration of this model"):
        model.save_pretrained(tmp_path, config=replace(model.config, steps=9))
    model.save_pretrained(tmp_path, config=model.config)


def test_the_card_names_the_licences_of_code_and_weights_and_is_kept_when_there(
    model: InternVLAA1, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, model_card_kwargs={"weights_licence": "CC BY-NC-SA 4.0"})
    card = (tmp_path / "README.md").read_text()
    assert "| code that runs it (moteur) | Apache-2.0 |" in card
    assert "| these weights | CC BY-NC-SA 4.0 |" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path / "other")
    assert "| these weights | not stated by whoever saved this" in (tmp_path / "other" / "README.md").read_text()


def saved(model: InternVLAA1, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_the_configuration_survives_json_field_by_field(any_model: InternVLAA1) -> None:
    for config in (any_model.config, any_model.config.without_foresight()):
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "qwena1"}, "type: expected 'moteur/internvla_a1', got 'qwena1'"),
        ({"version": 2}, "version: expected 1, got 2; another version of moteur wrote this"),
        ({"depht": 3}, r"config.json: unknown fields \['depht'\], missing fields \[\]"),
        ({"depth": ...}, r"config.json: unknown fields \[\], missing fields \['depth'\]"),
        ({"depth": 2.0}, "depth: expected int, got 2.0"),
        ({"depth": True}, "depth: expected int, got True"),
        ({"rope_base": "1"}, "rope_base: expected float, got '1'"),
        ({"qk_norm": 1}, "qk_norm: expected bool, got 1"),
        ({"action_reduction": "sum"}, r"action_reduction: expected one of \['valid', 'released'\], got 'sum'"),
        ({"rope_sections": [2, 1]}, r"rope_sections: expected 3 entries, got \[2, 1\]"),
        ({"rope_sections": 4}, "rope_sections: expected a list, got 4"),
        ({"rope_sections": [2, 1, 2]}, r"rope_sections: expected three numbers that sum to head_dim / 2 = 4, got"),
        ({"und": 24}, "und: expected an object with the fields of ExpertSize, got 24"),
        ({"und": {"dim": 24}}, r"und: unknown fields \[\], missing fields \['mlp_dim'\]"),
        ({"vision": {"kind": []}}, r"vision.kind: expected one of \['InternVLVision', 'Qwen3VLVision'\], got"),
        ({"rope_base": float("nan")}, "rope_base: expected greater than 0, got nan"),
        ({"foresight_weight": float("nan")}, "foresight_weight: expected 0 or more, got nan"),
        ({"vision": {"kind": "SigLIP"}}, r"vision.kind: expected one of \['InternVLVision', 'Qwen3VLVision'\], got"),
    ],
)
def test_a_configuration_file_that_is_not_ours_to_the_letter_is_refused(change: dict, message: str) -> None:
    values = {**config_to_json(toy_config()), **change}
    with pytest.raises(ValueError, match=message):
        config_from_json({name: value for name, value in values.items() if value is not ...})
