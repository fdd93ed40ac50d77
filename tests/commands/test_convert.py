"""`moteur convert`: files that the tokenizer loads."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from toy_model import toy_config
from typer.testing import Result

from moteur.tokenizers import CosmosEncoder, load_weights


def test_the_converted_file_loads_into_the_tokenizer(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("convert", "cosmos", "--out", "converted")
    assert found.stdout == "wrote converted/encoder.safetensors\n"
    load_weights(CosmosEncoder(toy_config().cosmos), home / "converted")
    assert set(load_file(home / "converted" / "encoder.safetensors")) == set(
        CosmosEncoder(toy_config().cosmos).state_dict()
    )


def test_an_existing_file_is_replaced_only_by_force(home: Path, moteur: Callable[..., Result]) -> None:
    (home / "here").mkdir()
    (home / "here" / "encoder.safetensors").write_bytes(b"kept")
    found = moteur("convert", "cosmos", "--out", "here")
    assert found.exit_code == 2
    assert found.stderr == "error: --out: expected new files, got here/encoder.safetensors; --force replaces them\n"
    assert (home / "here" / "encoder.safetensors").read_bytes() == b"kept"
    assert moteur("convert", "cosmos", "--out", "here", "--force").exit_code == 0


def test_a_folder_without_torchscript_is_refused(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("convert", "sets")
    assert found.exit_code == 2
    assert found.stderr == "error: source: expected a folder with encoder.jit or decoder.jit, got sets\n"
    (home / "bad").mkdir()
    (home / "bad" / "encoder.jit").write_bytes(b"PK\x03\x04")
    assert moteur("convert", "bad").stderr.startswith("error: bad/encoder.jit: not a readable TorchScript file")
