"""Load, save and convert weights of the Cosmos tokenizer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moteur.files import write_whole
from moteur.hub import HubOptions, Location
from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder
from moteur.tokenizers.torchscript import read_torchscript

_HALVES = ("encoder", "decoder")
_OWN_FILE = "cosmos.safetensors"  # both halves in one file, keys `encoder/<name>` and `decoder/<name>`
_ZIP_MAGIC = b"PK\x03\x04"
# Constants of the Haar transform, which the released modules store as buffers and ours hold in code.
_HAAR_BUFFERS = {"wavelets": [0.5**0.5, 0.5**0.5], "_arange": [0.0, 1.0]}
_HAAR_PATCH = "patch_size_buffer"
_BFLOAT16_STEP = 2**-8


def load_weights(
    model: CosmosEncoder | CosmosDecoder,
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    **hub: Unpack[HubOptions],
) -> Path:
    """Load the weights of an encoder or a decoder from a file, a folder or a Hub repository.

    In a folder or repository, the first of `encoder.safetensors`, `cosmos.safetensors` (both halves, written by
    `save_weights`) and `encoder.jit` is read, or the same with `decoder`. Tensors of a TorchScript file are read
    without running its code. Constants of the Haar transform in the file must equal those of `haar_patches`, and are
    dropped. Everything is read and compared before the first weight changes, so a failure leaves the model as it was.
    Weights are converted to the dtype and device of the model.

    Args:
        model: Model of the file's sizes, on any device but meta.
        source: File or folder; or a string that names neither: a Hub id `owner/name`, which is downloaded unless it is
            in the Hub's cache. A `Path` is never taken for a Hub id; a string whose first part is a folder here needs a
            revision for that.
        revision: Branch, tag or commit on the Hub.
        **hub: `cache_dir`, `token`, `force_download` and `local_files_only` of the Hub's client.

    Returns:
        The file that was read.

    Raises:
        ValueError: No such source, no fitting file in it, a truncated or corrupt file, another wavelet or patch than
            the model's, or keys, shapes or dtypes that do not fit the model: all of them are listed.
        FileNotFoundError: The Hub has no such repository or revision, or cannot be reached and its cache has none.
    """
    half = "encoder" if isinstance(model, CosmosEncoder) else "decoder"
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError(
            "model: expected parameters in memory, got the meta device; call model.to_empty(device=...) first"
        )
    path = _locate(source, half, revision, hub)
    tensors = _read(path, half, patch=model.size.patch)
    _refuse_misfits(path, tensors, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return path


def save_weights(
    path: str | os.PathLike[str], *, encoder: CosmosEncoder | None = None, decoder: CosmosDecoder | None = None
) -> None:
    """Save the weights of one or both halves as a safetensors file, which `load_weights` reads.

    The file is written under a temporary name, flushed to the disk and renamed, so it is complete or absent. An
    existing file is replaced. What a killed process left of the same file is removed.

    Raises:
        ValueError: Neither half is given, or the file name does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name ending in .safetensors, got {path.name}")
    halves = {"encoder": encoder, "decoder": decoder}
    tensors = {
        f"{half}/{name}": tensor
        for half, model in halves.items()
        if model is not None
        for name, tensor in model.state_dict().items()
    }
    if not tensors:
        raise ValueError("encoder, decoder: expected at least one, got None for both")
    _write(path, tensors)


def convert_weights(
    source: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Convert `encoder.jit` and `decoder.jit` to safetensors, without running their code.

    Values, dtypes and names stay the same; constants of the Haar transform are dropped. Both files are read before
    anything is written, and each file is complete or absent.

    Args:
        source: Folder with `encoder.jit`, `decoder.jit` or both.
        out: Folder for `encoder.safetensors` and `decoder.safetensors`, created if needed. None: `source`.
        overwrite: Replace existing files.

    Returns:
        The files written.

    Raises:
        ValueError: No TorchScript file in `source`, an unreadable one, or a file that exists already.
    """
    source = Path(source)
    out = source if out is None else Path(out)
    targets = {half: out / f"{half}.safetensors" for half in _HALVES if (source / f"{half}.jit").is_file()}
    if not targets:
        raise ValueError(f"source: expected a folder with encoder.jit or decoder.jit, got {source}")
    for target in targets.values():
        if target.exists() and not overwrite:
            raise ValueError(f"out: expected no {target.name} in {out}, got one; overwrite=True replaces it")
    tensors = {half: _read(source / f"{half}.jit", half) for half in targets}
    out.mkdir(parents=True, exist_ok=True)
    for half, target in targets.items():
        _write(target, tensors[half])
    return list(targets.values())


def _read(path: Path, half: str, *, patch: int | None = None) -> dict[str, Tensor]:
    """Tensors of one half from a file of any layout, on the CPU, under the names of our modules.

    `patch` is the side of the Haar patches that the file may state; None accepts any.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    if is_zip:
        return _without_haar(path, read_torchscript(path), patch)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: neither TorchScript nor a whole safetensors file ({error})") from error
    if tensors and all(name.startswith(("encoder/", "decoder/")) for name in tensors):
        prefix = f"{half}/"
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise ValueError(f"{path}: holds no {half}")
        return tensors
    return _without_haar(path, tensors, patch)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that is never half a file."""
    write_whole(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def _without_haar(path: Path, tensors: dict[str, Tensor], patch: int | None) -> dict[str, Tensor]:
    """Drop the constants of the Haar transform, after comparing them with those of `haar_patches`."""
    constants = _HAAR_BUFFERS | ({} if patch is None else {_HAAR_PATCH: [float(patch)]})
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        if last not in {*_HAAR_BUFFERS, _HAAR_PATCH}:
            weights[name] = tensor
            continue
        expected = constants.get(last)
        # Half precision rounds √½; a file that was widened afterwards still holds the rounded value.
        if expected is not None and not (
            tensor.numel() == len(expected)
            and torch.allclose(tensor.flatten().double(), torch.tensor(expected).double(), rtol=_BFLOAT16_STEP, atol=0)
        ):
            got = tensor.flatten()[:8].double().tolist()
            raise ValueError(f"{path}: {name}: expected {expected} of the Haar transform, got {got}")
    return weights


def _locate(source: str | os.PathLike[str], half: str, revision: str | None, hub: HubOptions) -> Path:
    """Find the file to read."""
    names = [f"{half}.safetensors", _OWN_FILE, f"{half}.jit"]
    place = source if isinstance(source, str) else Path(source)
    path = Location("source", place, revision, hub, file=True).folder(names)
    if path.is_file():
        return path
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise ValueError(f"source: expected one of {', '.join(names)} in {source}, got none")
    return found[0]


def _refuse_misfits(path: Path, tensors: Mapping[str, Tensor], model: CosmosEncoder | CosmosDecoder) -> None:
    """Raise with a list of all differences between the file and the model."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shared = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "wrong shape": [
            f"{name} (expected {expected[name]}, got {tuple(tensors[name].shape)})"
            for name in shared
            if tuple(tensors[name].shape) != expected[name]
        ],
        "wrong dtype": [
            f"{name} (expected floating point, got {tensors[name].dtype})"
            for name in shared
            if not tensors[name].is_floating_point()
        ],
    }
    lines = [f"  {kind} ({len(names)}): {', '.join(names)}" for kind, names in problems.items() if names]
    if lines:
        raise ValueError("\n".join([f"{path}: does not fit this {type(model).__name__}", *lines]))
