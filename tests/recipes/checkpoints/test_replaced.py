"""A folder that is saved into while it is read: the load is refused, never half of each."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_model import randomised, toy_config

from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints import files, load


@pytest.mark.parametrize("mapped", [False, True])
def test_a_save_into_the_folder_during_a_load_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mapped: bool,
) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    original = files.tensors_of

    def interrupted(path: Path) -> dict[str, files.Stored]:
        found = original(path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        model.save_pretrained(tmp_path)
        return found

    monkeypatch.setattr(files, "tensors_of", interrupted)
    with pytest.raises(ValueError, match=r"model.safetensors: changed while it was read, by a save .*; load it again"):
        InternVLAA1.from_pretrained(tmp_path, mapped=mapped)


def test_a_save_between_configuration_and_tensors_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    original = load.find_tensors

    def late(folder: Path) -> dict[str, files.Stored]:
        model.save_pretrained(folder)
        return original(folder)

    monkeypatch.setattr(load, "find_tensors", late)
    with pytest.raises(ValueError, match=r"config.json: changed while the folder was read, by a save perhaps"):
        InternVLAA1.from_pretrained(tmp_path)


def test_a_move_that_fails_leaves_the_new_files_in_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "model.safetensors":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path)
    monkeypatch.undo()
    (stage,) = tmp_path.glob(".partial-*")
    assert {"config.json", "model.safetensors"} <= {path.name for path in stage.iterdir()}
    with pytest.raises(ValueError, match=r"expected a config\.json in it, got none"):
        InternVLAA1.from_pretrained(tmp_path)
    assert InternVLAA1.from_pretrained(stage).loading_report.exact


@pytest.mark.parametrize("odd", [float("nan"), torch.ones(2)])
def test_statistics_that_no_file_can_hold_are_refused_before_anything_is_written(tmp_path: Path, odd: object) -> None:
    model = randomised(toy_config())
    model.statistics = {"arm": {"state": odd}}
    with pytest.raises(ValueError, match="statistics: expected plain, finite values that JSON can hold"):
        model.save_pretrained(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lost_tokenizer_is_not_replaced_by_noise(tmp_path: Path) -> None:
    randomised(toy_config()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("foresight.encoder.")}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"cosmos: expected where the tokenizer is, the file lacks foresight.encoder"):
        InternVLAA1.from_pretrained(tmp_path, strict=False)


def test_saved_files_can_be_read_by_whom_new_files_can(tmp_path: Path) -> None:
    randomised(toy_config()).save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {plain.stat().st_mode & 0o777}, modes


def test_what_was_drawn_without_strictness_is_still_missing_in_the_report(tmp_path: Path) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = [name for name in tensors if name.startswith("action.")]
    save_file({name: value for name, value in tensors.items() if name not in lost}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"strict=False") as caught:
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False)
    assert set(loaded.loading_report.missing) == set(lost)
    assert not loaded.loading_report.exact
    assert all(name in str(caught[0].message) for name in lost)
