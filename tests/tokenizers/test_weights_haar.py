"""Constants of the Haar transform in a file: dropped where they are ours, refused where they are not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_torchscript import save_torchscript

from moteur.tokenizers import CosmosDecoder, CosmosEncoder, CosmosSize, convert_weights, load_weights, save_weights
from moteur.tokenizers.haar import haar_patches

TINY = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)
OURS = {"wavelets": torch.tensor([0.5**0.5] * 2), "_arange": torch.arange(2), "patch_size_buffer": torch.tensor([4])}


def write(folder: Path, buffers: dict[str, torch.Tensor], form: str) -> CosmosEncoder:
    """An encoder's file with these buffers in it, and the encoder."""
    model = CosmosEncoder(TINY)
    tensors = {**model.state_dict(), **{f"encoder.patcher.{name}": tensor for name, tensor in buffers.items()}}
    if form == "safetensors":
        save_file(tensors, folder / "encoder.safetensors")
    else:
        save_torchscript(tensors, folder / "encoder.jit")
    return model


@pytest.mark.parametrize("form", ["safetensors", "jit"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_our_constants_are_dropped_rounded_to_half_precision_or_not(
    form: str, wide: torch.dtype, tmp_path: Path
) -> None:
    for rounded in (torch.float32, torch.bfloat16, torch.float16):
        wavelets = OURS["wavelets"].to(rounded)
        for stored in (wavelets, wavelets.to(wide)):
            model, original = CosmosEncoder(TINY), write(tmp_path, OURS | {"wavelets": stored}, form)
            load_weights(model, tmp_path)
            assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", ["safetensors", "jit"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("wavelets", torch.ones(2), r"expected [0.7071067811865476, 0.7071067811865476] of the Haar transform, got [1"),
        ("wavelets", torch.tensor([0.5**0.5, -(0.5**0.5)]), "-0.7071"),
        ("wavelets", torch.tensor([0.5**0.5, float("nan")]), "nan"),
        ("wavelets", torch.full((4,), 0.5**0.5), "expected [0.7071067811865476, 0.7071067811865476]"),
        ("_arange", torch.tensor([1, 0]), "expected [0.0, 1.0] of the Haar transform, got [1.0, 0.0]"),
        ("patch_size_buffer", torch.tensor([2]), "expected [4.0] of the Haar transform, got [2.0]"),
    ],
)
def test_another_wavelet_or_patch_is_refused_and_the_model_stays_as_it_was(
    name: str, value: torch.Tensor, message: str, form: str, tmp_path: Path
) -> None:
    write(tmp_path, OURS | {name: value}, form)
    model = CosmosEncoder(TINY)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"encoder\..*: encoder\.patcher\.{name}: .*{re.escape(message)}"):
        load_weights(model, tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if form == "jit" and name != "patch_size_buffer":  # the command knows no patch; shapes tell it afterwards
        with pytest.raises(ValueError, match=rf"encoder\.patcher\.{name}: "):
            convert_weights(tmp_path)


def test_a_buffer_of_any_other_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, OURS | {"wavelet": torch.zeros(2)}, "safetensors")
    with pytest.raises(ValueError, match=r"unexpected \(1\): encoder\.patcher\.wavelet$"):
        load_weights(CosmosEncoder(TINY), tmp_path)


def test_our_own_file_holds_no_constants_and_may_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "cosmos.safetensors"
    save_weights(path, decoder=CosmosDecoder(TINY))
    save_file({**load_file(path), "decoder/decoder.unpatcher.wavelets": OURS["wavelets"]}, path)
    with pytest.raises(ValueError, match=r"unexpected \(1\): decoder\.unpatcher\.wavelets"):
        load_weights(CosmosDecoder(TINY), path)


def test_the_constants_are_those_that_ours_computes_with() -> None:
    image = torch.zeros(1, 1, 2, 2)
    image[..., 0, 0] = 1
    low = OURS["wavelets"][0] ** 2 / 2  # once along columns, once along rows, and halved
    torch.testing.assert_close(haar_patches(image, patch=2).flatten(), low.expand(4), rtol=1e-6, atol=0)
