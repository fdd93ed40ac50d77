"""The foresight of a checkpoint without the model around it, and summaries from headers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_checkpoints import released_config, released_tensors, write_tensors
from toy_model import randomised, toy_config, toy_config_2b

from moteur.recipes import InternVLAA1, InternVLAA1Config
from moteur.recipes.checkpoints import load
from moteur.recipes.checkpoints.load import load_foresight
from moteur.recipes.checkpoints.summary import inspect_checkpoint
from moteur.tokenizers import save_weights


def written(folder: Path, config: InternVLAA1Config, *, layout: str, without_cosmos: bool = False) -> dict[str, Any]:
    """Save a model in a layout, bfloat16 but for one; returns what its loading needs."""
    model = randomised(config)
    folder.mkdir()
    if layout == "own":
        model.bfloat16().save_pretrained(folder)
        return {}
    tensors = {name: tensor.bfloat16() for name, tensor in released_tensors(model).items()}
    options: dict[str, Any] = {"config": config}
    if without_cosmos:
        assert model.foresight is not None
        tensors = {name: tensor for name, tensor in tensors.items() if "_enc_model." not in name}
        save_weights(folder.parent / "cosmos.safetensors", encoder=model.foresight.encoder)
        options["cosmos"] = folder.parent / "cosmos.safetensors"
    write_tensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(released_config(config)))
    return options


@pytest.mark.parametrize("dtype", [None, "released", "float32"])
@pytest.mark.parametrize(
    ("layout", "config", "without_cosmos"),
    [
        ("own", toy_config(), False),
        ("released", toy_config(), False),
        ("released", toy_config_2b(), False),
        ("released", toy_config(), True),
    ],
)
def test_it_is_bit_for_bit_that_of_the_whole_model(
    layout: str, config: InternVLAA1Config, without_cosmos: bool, dtype: str | None, tmp_path: Path
) -> None:
    options = written(tmp_path / "saved", config, layout=layout, without_cosmos=without_cosmos)
    built, alone = load_foresight(tmp_path / "saved", dtype=dtype, **options)
    whole = InternVLAA1.from_pretrained(tmp_path / "saved", dtype=dtype, **options).foresight
    assert whole is not None
    expected, found = whole.state_dict(), alone.state_dict()
    assert built == config
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert alone.digest() == whole.digest()
    assert not alone.training


def test_nothing_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "saved", toy_config(), layout="own")
    names: list[str] = []
    read_all = load.read_all

    def watched(wanted: Mapping[str, Any], *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        names.extend(wanted)
        return read_all(wanted, *arguments, **options)

    monkeypatch.setattr(load, "read_all", watched)
    load_foresight(tmp_path / "saved")
    assert names
    assert all(name.startswith("foresight.") for name in names)


def test_a_tensor_that_is_missing_is_refused(tmp_path: Path) -> None:
    options = written(tmp_path / "saved", toy_config(), layout="released", without_cosmos=True)
    with pytest.raises(ValueError, match="say with cosmos= where it is"):
        load_foresight(tmp_path / "saved", config=options["config"])


def test_a_summary_counts_what_the_headers_say(tmp_path: Path) -> None:
    written(tmp_path / "saved", toy_config(), layout="own")
    model = InternVLAA1.from_pretrained(tmp_path / "saved")
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    found = inspect_checkpoint(str(tmp_path / "saved"))
    assert (found.parameters, found.size) == ({"bfloat16": count}, 2 * count)
    assert (found.released, found.encoder, found.decoder, found.tokenizer) == (False, True, False, False)
    assert found.config == toy_config()
