import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_torchscript import save_torchscript

from moteur.tokenizers import CosmosDecoder, CosmosEncoder, CosmosSize, convert_weights, load_weights, save_weights

TINY = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)
HALVES = {"encoder": CosmosEncoder, "decoder": CosmosDecoder}
Half = CosmosEncoder | CosmosDecoder


def released(model: Half) -> dict[str, torch.Tensor]:
    """What the released files hold: the weights, and constants of the Haar transform."""
    half = "encoder" if isinstance(model, CosmosEncoder) else "decoder"
    patcher = f"{half}.{'patcher' if half == 'encoder' else 'unpatcher'}"
    return {
        **model.state_dict(),
        f"{patcher}.wavelets": torch.tensor([0.5**0.5, 0.5**0.5]),
        f"{patcher}._arange": torch.arange(2),
        f"{patcher}.patch_size_buffer": torch.tensor([model.size.patch], dtype=torch.int32),
    }


def write(model: Half, folder: Path, form: str) -> None:
    half = "encoder" if isinstance(model, CosmosEncoder) else "decoder"
    match form:
        case "jit":
            save_torchscript(released(model), folder / f"{half}.jit")
        case "safetensors":
            save_file(model.state_dict(), folder / f"{half}.safetensors")
        case "safetensors with buffers":
            save_file(released(model), folder / f"{half}.safetensors")
        case _:
            save_weights(folder / "cosmos.safetensors", **{half: model})


def assert_same(ours: Half, theirs: Half) -> None:
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("form", ["jit", "safetensors", "safetensors with buffers", "own"])
def test_every_form_loads_bit_for_bit_from_folder_and_file(tmp_path: Path, form: str, half: str) -> None:
    original, folder_model, file_model = (HALVES[half](TINY) for _ in range(3))
    write(original, tmp_path, form)
    path = load_weights(folder_model, tmp_path)
    assert path.parent == tmp_path
    assert_same(folder_model, original)
    load_weights(file_model, path)
    assert_same(file_model, original)
    assert not any(parameter.requires_grad for parameter in folder_model.parameters())


def test_weights_take_the_dtype_and_device_of_the_model(tmp_path: Path, device: torch.device) -> None:
    original = CosmosEncoder(TINY)
    write(original, tmp_path, "jit")
    for dtype in (torch.float64, torch.bfloat16):
        model = CosmosEncoder(TINY, device=device, dtype=dtype)
        load_weights(model, tmp_path)
        for name, tensor in original.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], tensor.to(device, dtype), rtol=0, atol=0)
    half = CosmosEncoder(TINY, dtype=torch.float16)
    save_weights(tmp_path / "half.safetensors", encoder=half)
    load_weights(original, tmp_path / "half.safetensors")
    torch.testing.assert_close(original.quant_conv.weight, half.quant_conv.weight.float(), rtol=0, atol=0)


def test_channels_last_survives_loading_and_saving(tmp_path: Path) -> None:
    original = CosmosDecoder(TINY).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "cosmos.safetensors", decoder=original)
    model = CosmosDecoder(TINY).to(memory_format=torch.channels_last)
    load_weights(model, tmp_path)
    assert_same(model, original)
    assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_one_file_of_ours_holds_both_halves(tmp_path: Path) -> None:
    encoder, decoder = CosmosEncoder(TINY), CosmosDecoder(TINY)
    save_weights(tmp_path / "cosmos.safetensors", encoder=encoder, decoder=decoder)
    found = CosmosEncoder(TINY), CosmosDecoder(TINY)
    for model, original in zip(found, (encoder, decoder), strict=True):
        load_weights(model, tmp_path)
        assert_same(model, original)
    assert list(tmp_path.iterdir()) == [tmp_path / "cosmos.safetensors"]


def test_an_encoder_needs_no_decoder_file_and_says_which_file_it_misses(tmp_path: Path) -> None:
    write(CosmosEncoder(TINY), tmp_path, "safetensors")
    load_weights(CosmosEncoder(TINY), tmp_path)
    with pytest.raises(
        ValueError,
        match=r"source: expected one of decoder.safetensors, cosmos.safetensors, decoder.jit in .*, got none",
    ):
        load_weights(CosmosDecoder(TINY), tmp_path)
    save_weights(tmp_path / "cosmos.safetensors", encoder=CosmosEncoder(TINY))
    with pytest.raises(ValueError, match=r"cosmos.safetensors: holds no decoder"):
        load_weights(CosmosDecoder(TINY), tmp_path)


def test_safetensors_come_before_torchscript(tmp_path: Path) -> None:
    original = CosmosEncoder(TINY)
    write(CosmosEncoder(TINY), tmp_path, "jit")
    write(original, tmp_path, "safetensors")
    model = CosmosEncoder(TINY)
    assert load_weights(model, tmp_path) == tmp_path / "encoder.safetensors"
    assert_same(model, original)


def test_every_misfit_is_listed_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = CosmosEncoder(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    del tensors["encoder.conv_in.bias"], tensors["encoder.mid.attn_1.q.weight"]
    tensors["encoder.norm_out.weight"] = torch.zeros(7)
    tensors["encoder.norm_out.bias"] = torch.zeros(32, dtype=torch.int64)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"encoder.safetensors: does not fit this CosmosEncoder") as caught:
        load_weights(model, tmp_path)
    assert str(caught.value).split("\n")[1:] == [
        "  missing (2): encoder.conv_in.bias, encoder.mid.attn_1.q.weight",
        "  unexpected (1): extra",
        "  wrong shape (1): encoder.norm_out.weight (expected (32,), got (7,))",
        "  wrong dtype (1): encoder.norm_out.bias (expected floating point, got torch.int64)",
    ]
    for name, tensor in before.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_other_half_does_not_fit(tmp_path: Path) -> None:
    save_file(CosmosDecoder(TINY).state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"(?s)missing \(\d+\): encoder.conv_in.weight.*unexpected \(\d+\): decoder."):
        load_weights(CosmosEncoder(TINY), tmp_path)


@pytest.mark.parametrize("form", ["jit", "safetensors", "own"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_an_error_and_the_model_stays_as_it_was(tmp_path: Path, form: str, keep: float) -> None:
    write(CosmosEncoder(TINY), tmp_path, form)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    model = CosmosEncoder(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{path.name}: (not a readable TorchScript file|neither TorchScript nor a)"):
        load_weights(model, tmp_path)
    for name, tensor in before.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


def test_what_is_neither_a_path_nor_a_hub_id_is_refused(tmp_path: Path) -> None:
    model = CosmosEncoder(TINY)
    for source in ("nowhere", "a/b/c", tmp_path / "nowhere", Path("owner/name")):
        with pytest.raises(ValueError, match=r"source: expected a file, a folder or a Hub id owner/name, got "):
            load_weights(model, source)
    with pytest.raises(ValueError, match=r"revision: expected None for .*, which is on this machine, got 'main'"):
        load_weights(model, tmp_path, revision="main")
    with pytest.raises(ValueError, match=r"model: expected parameters in memory, got the meta device"):
        load_weights(CosmosEncoder(TINY, device="meta"), tmp_path)


def test_a_hub_id_is_fetched_one_half_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CosmosEncoder(TINY)
    write(original, tmp_path, "jit")
    calls = []

    def fake_download(repo: str, **options: object) -> str:
        calls.append((repo, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_download)
    model = CosmosEncoder(TINY)
    client = {"cache_dir": tmp_path, "token": "secret", "force_download": True, "local_files_only": True}
    load_weights(model, "nvidia/Cosmos-Tokenizer-CI8x8", revision="abc", **client)
    assert_same(model, original)
    names = ["encoder.safetensors", "cosmos.safetensors", "encoder.jit"]
    assert calls == [("nvidia/Cosmos-Tokenizer-CI8x8", {"revision": "abc", "allow_patterns": names, **client})]


def test_saving_needs_something_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder, decoder: expected at least one, got None for both"):
        save_weights(tmp_path / "cosmos.safetensors")
    with pytest.raises(ValueError, match=r"path: expected a name ending in .safetensors, got cosmos.pt"):
        save_weights(tmp_path / "cosmos.pt", encoder=CosmosEncoder(TINY))


def test_an_interrupted_save_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CosmosEncoder(TINY)
    path = tmp_path / "cosmos.safetensors"
    save_weights(path, encoder=original)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, encoder=CosmosEncoder(TINY))
    assert list(tmp_path.iterdir()) == [path]
    model = CosmosEncoder(TINY)
    load_weights(model, path)
    assert_same(model, original)


def test_files_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write(CosmosEncoder(TINY), tmp_path, "jit")
    before = os.umask(0o027)
    try:
        (converted,) = convert_weights(tmp_path)
        save_weights(tmp_path / "cosmos.safetensors", encoder=CosmosEncoder(TINY))
    finally:
        os.umask(before)
    for path in (converted, tmp_path / "cosmos.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_save_removes_what_killed_processes_left_of_its_file_and_nothing_else(tmp_path: Path) -> None:
    killed, other = tmp_path / ".a.safetensors.0123.part", tmp_path / ".b.safetensors.0123.part"
    for path in (killed, other):
        path.write_bytes(b"half")
    save_weights(tmp_path / "a.safetensors", encoder=CosmosEncoder(TINY))
    assert set(tmp_path.iterdir()) == {other, tmp_path / "a.safetensors"}


@pytest.mark.parametrize("kind", [str, Path])
def test_conversion_keeps_every_bit_and_replaces_files_only_when_asked(
    tmp_path: Path, kind: Callable[[Path], str | Path]
) -> None:
    models = CosmosEncoder(TINY, dtype=torch.bfloat16), CosmosDecoder(TINY, dtype=torch.bfloat16)
    for model in models:
        write(model, tmp_path, "jit")
    out = tmp_path / "converted"
    assert convert_weights(kind(tmp_path), kind(out)) == [out / f"{name}.safetensors" for name in HALVES]
    assert sorted(os.listdir(out)) == ["decoder.safetensors", "encoder.safetensors"]  # noqa: PTH208 -- hidden files too
    for name, model in zip(HALVES, models, strict=True):
        tensors = load_file(out / f"{name}.safetensors")
        assert set(tensors) == set(model.state_dict())
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=0)
    with pytest.raises(
        ValueError, match=r"out: expected no encoder.safetensors in .*converted, got one; overwrite=True"
    ):
        convert_weights(tmp_path, out)
    assert convert_weights(tmp_path, out, overwrite=True)


def test_conversion_writes_nothing_when_one_file_is_bad(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source: expected a folder with encoder.jit or decoder.jit"):
        convert_weights(tmp_path)
    write(CosmosEncoder(TINY), tmp_path, "jit")
    (tmp_path / "decoder.jit").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"decoder.jit: not a readable TorchScript file"):
        convert_weights(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.jit", "encoder.jit"]


def test_the_released_size_loads_from_torchscript(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        name: tensor.shape for name, tensor in CosmosEncoder(CosmosSize.ci8x8(), device="meta").state_dict().items()
    }
    tensors = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    save_torchscript(tensors, tmp_path / "encoder.jit")
    model = CosmosEncoder(CosmosSize.ci8x8(), device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    load_weights(model, tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(model.state_dict()[name], tensor)
