"""Saving and loading in our own layout: exactly what was saved, or an error."""

import copy
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as read
from safetensors.torch import load_file, save_file
from toy_checkpoints import STATISTICS, released_tensors, states_equal, write_tensors
from toy_model import random_inputs, randomised, toy_config

from moteur.recipes import InternVLAA1, Targets, use_released_precision
from moteur.recipes.checkpoints import detect, tensors
from moteur.recipes.checkpoints import folder as folder_room
from moteur.recipes.checkpoints.keymap import separate
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
    train_step(optimizer, model(inputs, targets).total, rate=1e-2)
    model.eval().save_pretrained(tmp_path)
    loaded = InternVLAA1.from_pretrained(tmp_path)
    assert states_equal(loaded, model)
    assert all(torch.equal(one, other) for one, other in zip(outputs(model), outputs(loaded), strict=True))
    assert torch.equal(
        *(one(inputs, targets, generator=torch.Generator().manual_seed(2)).total for one in (model, loaded))
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
        inputs = random_inputs(model.config, 2, seed=3).to(device)
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
    with pytest.raises(ValueError, match="cosmos: expected None, the checkpoint holds all of the tokenizer it needs"):
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
    with pytest.raises(ValueError, match=r"statistics: expected a mapping of fields, got \[\{'arm': \{\}\}\]"):
        again.save_pretrained(tmp_path)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)
    again.statistics = {"arm": [1.0]}
    with pytest.raises(ValueError, match=r"statistics: arm: expected a mapping of fields, got \[1.0\]"):
        again.save_pretrained(tmp_path)
    (tmp_path / "stats.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"stats.json: .*expected a mapping of fields, got \[1\]"):
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
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    write_tensors(tmp_path, whole, shards=3)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)


def test_a_tensor_too_many_or_too_few_is_an_error_unless_asked_for(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = read(path.read_bytes())  # a copy: the file is written over
    lost = {"action.action_in.weight", "action.action_in.bias", "mot.experts.act.layers.1.mlp.down.weight"}
    save_file({"value_head.weight": torch.zeros(3)} | {n: t for n, t in whole.items() if n not in lost}, path)
    with pytest.raises(ValueError, match=r"(?s)missing \(3\): .*action\.action_in\.bias.*unexpected \(1\): value_head"):
        InternVLAA1.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"(?s)strict=False.*missing \(3\).*value_head"):
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False, seed=5)
    assert set(loaded.loading_report.fresh) == lost
    assert loaded.loading_report.unexpected == ("value_head.weight",)
    kept = {name: tensor for name, tensor in loaded.state_dict().items() if name not in lost}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in kept.items())
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


def test_only_another_configuration_than_the_saved_one_is_noted(model: InternVLAA1, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    for same in (None, model.config):
        assert InternVLAA1.from_pretrained(tmp_path, config=same).loading_report.notes == ()
    other = InternVLAA1.from_pretrained(tmp_path, config=replace(model.config, steps=model.config.steps + 1))
    assert other.loading_report.notes == ("the configuration is the one asked for, not the one that was saved",)


def test_integers_are_no_weights(model: InternVLAA1, tmp_path: Path) -> None:
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "action.state_in.bias": torch.zeros(28, dtype=torch.int64)}, path)
    with pytest.raises(
        ValueError, match=r"state_in.bias \(expected floating point of 16 to 64 bits, got torch.int64\)"
    ):
        InternVLAA1.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_dtype_may_be_given_by_name(dtype: str, model: InternVLAA1, tmp_path: Path) -> None:
    loaded = InternVLAA1.from_pretrained(saved(model, tmp_path), dtype=dtype)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {getattr(torch, dtype)}


@pytest.mark.usefixtures("without_shape_checks")  # they refuse what is no dtype at all, in words of their own
@pytest.mark.parametrize("dtype", ["bf16", torch.int8, torch.float8_e4m3fn, float, 3, {}, np.float32])
def test_a_dtype_that_weights_cannot_have_is_refused_by_name(dtype: object, model: InternVLAA1, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^dtype: expected .*'released' or None, got {re.escape(repr(dtype))}$"):
        InternVLAA1.from_pretrained(saved(model, tmp_path), dtype=dtype)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_of_an_earlier_version_with_separate_projections_is_the_same_model(
    any_model: InternVLAA1, tmp_path: Path, mapped: bool, shards: int
) -> None:
    saved(any_model, tmp_path / "now")
    older = shutil.copytree(tmp_path / "now", tmp_path / "older")
    config, heads, kv_heads = any_model.config, any_model.config.heads, any_model.config.kv_heads
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(older / "model.safetensors").items():
        rows = (
            [config.head_dim * count for count in (heads, kv_heads, kv_heads)] if ".qkv." in name else len(tensor) // 2
        )
        parts = separate(name)
        apart |= dict(zip(parts, tensor.split(rows) if len(parts) > 1 else [tensor], strict=True))
    assert sum(name.endswith("attention.key.weight") for name in apart) == 3 * config.depth
    (older / "model.safetensors").unlink()
    write_tensors(older, {name: tensor.contiguous() for name, tensor in apart.items()}, shards=shards)
    loaded = InternVLAA1.from_pretrained(older, mapped=mapped)
    assert states_equal(loaded, any_model)
    assert set(loaded.loading_report.loaded) == set(apart)
    loaded.save_pretrained(older)
    assert (older / "model.safetensors").read_bytes() == (tmp_path / "now" / "model.safetensors").read_bytes()


def test_a_part_of_a_joined_projection_that_is_missing_or_misshapen_is_named(
    model: InternVLAA1, released: Callable[..., Path]
) -> None:
    tensors = released_tensors(model)
    key = "model.qwen3_vl_with_expert.act_expert.layers.1.self_attn.k_proj.weight"
    value = tensors.pop(key)
    with pytest.raises(ValueError, match=rf"missing \(1\): {re.escape(key)}$"):
        InternVLAA1.from_pretrained(released(model, tensors=tensors, name="lost"), config=model.config)
    with pytest.warns(UserWarning, match=re.escape(key)):
        drawn = InternVLAA1.from_pretrained(
            released(model, tensors=tensors, name="drawn"), config=model.config, strict=False, decoder=True
        )
    assert drawn.loading_report.fresh == ("mot.experts.act.layers.1.attention.qkv.weight",)
    query = key.replace("k_proj", "q_proj")
    swapped = {**tensors, key: tensors[query], query: value}  # as many rows in all
    with pytest.raises(
        ValueError, match=rf"wrong shape \(2\): {re.escape(query)} \(expected \(32, 28\), got \(16, 28\)\)"
    ):
        InternVLAA1.from_pretrained(released(model, tensors=swapped, name="swapped"), config=model.config)


def test_only_what_is_converted_or_joined_has_memory_of_its_own_in_a_mapped_model(
    model: InternVLAA1, released: Callable[..., Path]
) -> None:
    folder = released(model)
    loaded = InternVLAA1.from_pretrained(folder, config=model.config, mapped=True)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(bytes(folder.joinpath("model.safetensors").stat().st_size - 8 - length))
    kept = {name for name, tensor in loaded.state_dict().items() if torch.equal(tensor, before[name])}
    assert kept == {name for name in before if "attention.qkv." in name or ".gate_up." in name}


def test_a_lost_tokenizer_is_not_replaced_by_noise(tmp_path: Path) -> None:
    randomised(toy_config()).save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in whole.items() if not name.startswith("foresight.encoder.")}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"cosmos: expected where the tokenizer is, the file lacks 60 of .*foresight.encoder"
    ):
        InternVLAA1.from_pretrained(tmp_path, strict=False)


def test_what_was_drawn_without_strictness_is_still_missing_in_the_report(tmp_path: Path) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    lost = [name for name in whole if name.startswith("action.")]
    save_file({name: value for name, value in whole.items() if name not in lost}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"strict=False") as caught:
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False)
    assert set(loaded.loading_report.missing) == set(lost)
    assert not loaded.loading_report.exact
    assert f"missing ({len(lost)}): action." in str(caught[0].message)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks on folders."""

    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_room.fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("mapped", [False, True])
def test_a_save_into_the_folder_during_a_load_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mapped: bool,
) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    original = tensors.tensors_of

    def interrupted(path: Path) -> dict[str, tensors.Stored]:
        found = original(path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        model.save_pretrained(tmp_path)
        return found

    monkeypatch.setattr(tensors, "tensors_of", interrupted)
    with pytest.raises(ValueError, match=r"model.safetensors: changed while it was read, by a save .*; load it again"):
        InternVLAA1.from_pretrained(tmp_path, mapped=mapped)


@pytest.mark.usefixtures("without_locks")
def test_a_save_between_configuration_and_tensors_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    original = detect.find_tensors

    def late(folder: Path) -> dict[str, tensors.Stored]:
        model.save_pretrained(folder)
        return original(folder)

    monkeypatch.setattr(detect, "find_tensors", late)
    with pytest.raises(ValueError, match=r"config.json: changed while the folder was read, by a save perhaps"):
        InternVLAA1.from_pretrained(tmp_path)


def saved(model: InternVLAA1, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
