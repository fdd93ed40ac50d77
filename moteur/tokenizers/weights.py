"""Weights of the Cosmos tokenizer from files: exactly, or not at all."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder
from moteur.tokenizers.torchscript import read_torchscript

OWN_FILE = "cosmos.safetensors"
"""Our own layout: both halves in one file, keys `encoder/<name>` and `decoder/<name>`."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ZIP_MAGIC = b"PK\x03\x04"
# Constants of the Haar transform that the released modules carry as buffers. Ours has them in its code.
_HAAR_BUFFERS = {"wavelets": [0.5**0.5, 0.5**0.5], "_arange": [0.0, 1.0]}
_HAAR_PATCH = "patch_size_buffer"
_BFLOAT16_STEP = 2**-8


class _Hub(TypedDict):
    """What the Hub's client is told besides repository, revision and files."""

    cache_dir: str | Path | None
    token: str | bool | None
    force_download: bool
    local_files_only: bool


def load_weights(
    model: CosmosEncoder | CosmosDecoder,
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fill an encoder or a decoder with the weights of a file, a folder or a Hub repository.

    In a folder or repository it looks for its own half only, and takes the first there is of `encoder.safetensors`,
    `cosmos.safetensors` (ours: both halves in one), `encoder.jit`; or the same with `decoder`. Tensors are taken from
    TorchScript without running anything in it (see `read_torchscript`). Constants of the Haar transform may be among
    them, and must then be those of `haar_patches`. Everything is read and compared before the first weight changes, so
    a failure leaves the model as it was. Values are converted to the dtype and device that the model has.

    Args:
        model: Built at the file's sizes, on any device but meta.
        source: A file or folder; or, as a string that names neither, a Hub id `owner/name`, which is downloaded unless
            it is already in the Hub's cache. A path object is never taken for a Hub id.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Of the Hub's client.
        token: Of the Hub's client.
        force_download: Of the Hub's client.
        local_files_only: Of the Hub's client: take nothing from the network.

    Returns:
        The file that was read.

    Raises:
        ValueError: Nothing of that name or no fitting file in it, a truncated or corrupt file, another wavelet or patch
            than the model's, or keys, shapes or dtypes that are not the model's: each one is listed.
    """
    half = "encoder" if isinstance(model, CosmosEncoder) else "decoder"
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError("model: is on the meta device, give it memory first with model.to_empty(device=...)")
    hub: _Hub = {
        "cache_dir": cache_dir,
        "token": token,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    path = _locate(source, half, revision, hub)
    tensors = read_weights(path, half, patch=model.patch)
    _refuse_misfits(path, tensors, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
    return path


def save_weights(
    path: str | os.PathLike[str], *, encoder: CosmosEncoder | None = None, decoder: CosmosDecoder | None = None
) -> None:
    """Write one or both halves into a file of our own layout, complete or not at all.

    The file appears under its name only when it is whole; one of that name is replaced.

    Raises:
        ValueError: No half given, or a file name that does not end in `.safetensors`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: must end in .safetensors, got {path.name}")
    halves = {"encoder": encoder, "decoder": decoder}
    tensors = {
        f"{half}/{name}": tensor
        for half, model in halves.items()
        if model is not None
        for name, tensor in model.state_dict().items()
    }
    if not tensors:
        raise ValueError("encoder, decoder: at least one must be given, got None twice")
    write_safetensors(path, tensors)


def read_weights(path: Path, half: str, *, patch: int | None = None) -> dict[str, Tensor]:
    """Tensors of one half from a file of any layout, on the CPU, under the names that our modules use.

    Args:
        path: Of the file.
        half: "encoder" or "decoder".
        patch: Side of the Haar patches that a file may state, or None for any.

    Raises:
        ValueError: The file is missing, truncated or corrupt, is ours and holds the other half only, or states another
            wavelet or patch.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
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


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write beside the destination, then rename: readers never see half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _without_haar(path: Path, tensors: dict[str, Tensor], patch: int | None) -> dict[str, Tensor]:
    """Drop the constants of the Haar transform, once they are known to be the ones of `haar_patches`."""
    constants = _HAAR_BUFFERS | ({} if patch is None else {_HAAR_PATCH: [float(patch)]})
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        if last not in {*_HAAR_BUFFERS, _HAAR_PATCH}:
            weights[name] = tensor
            continue
        found, expected = tensor.flatten().double(), constants.get(last)
        # Half precision rounds √½, and stays rounded in a file that was widened afterwards.
        if expected is not None and not (
            len(found) == len(expected)
            and torch.allclose(found, found.new_tensor(expected), rtol=_BFLOAT16_STEP, atol=0)
        ):
            raise ValueError(f"{path}: {name}: expected {expected} of the Haar transform, got {found.tolist()[:8]}")
    return weights


def _locate(source: str | os.PathLike[str], half: str, revision: str | None, hub: _Hub) -> Path:
    """The one file to read."""
    names = [f"{half}.safetensors", OWN_FILE, f"{half}.jit"]
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision: only the Hub has revisions, and {source} is on this machine; got {revision}")
    elif isinstance(source, str) and _HUB_ID.fullmatch(source):
        # The Hub's client is slow to import, and nobody with files of their own needs it.
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        path = Path(snapshot_download(source, revision=revision, allow_patterns=names, **hub))
    else:
        raise ValueError(f"source: expected a file, a folder or a Hub id owner/name, got {source}")
    if path.is_file():
        return path
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise ValueError(f"source: {source} holds none of {', '.join(names)}")
    return found[0]


def _refuse_misfits(path: Path, tensors: Mapping[str, Tensor], model: CosmosEncoder | CosmosDecoder) -> None:
    """Raise with every difference between the file and the model, if there is one."""
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
