"""A folder that is saved into while it is read: the load is refused, never half of each."""

from pathlib import Path

import pytest
import torch
from toy_model import randomised, toy_config

from moteur.recipes import InternVLAA1
from moteur.recipes.weights import files


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


def test_saved_files_can_be_read_by_whom_new_files_can(tmp_path: Path) -> None:
    randomised(toy_config()).save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {plain.stat().st_mode & 0o777}, modes


def test_what_was_drawn_without_strictness_is_still_missing_in_the_report(tmp_path: Path) -> None:
    model = randomised(toy_config())
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file  # noqa: PLC0415  for this file alone

    tensors = load_file(tmp_path / "model.safetensors")
    lost = [name for name in tensors if name.startswith("action.")]
    save_file({name: value for name, value in tensors.items() if name not in lost}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"strict=False") as caught:
        loaded = InternVLAA1.from_pretrained(tmp_path, strict=False)
    assert set(loaded.loading_report.missing) == set(lost)
    assert not loaded.loading_report.exact
    assert all(name in str(caught[0].message) for name in lost)
