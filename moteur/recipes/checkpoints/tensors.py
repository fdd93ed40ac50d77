"""Tensors in safetensors files: headers checked first, then read into memory or mapped.

A mapped tensor costs nothing until it is used, and follows whatever later happens to its file: a file that is
overwritten in place changes the weights, one that is cut short ends the process. So mapping is not the default.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moteur.recipes.checkpoints.folder import INDEX, SINGLE, file_identity

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LFS_POINTER = b"version https://git-lfs"
_BLOCK = 16 * 2**20
_THREADS = 4
_LONGEST = 255  # letters of a file name


@dataclass(frozen=True)
class Stored:
    """Place and type of one stored tensor.

    Attributes:
        path: File.
        name: Key in the file.
        dtype: PyTorch's number format, or the file format's own name for one that PyTorch lacks.
        shape: Shape.
        start: Offset of the first byte in the file.
        size: Number of bytes.
        identity: The file when its header was read, see `file_identity`.
    """

    path: Path
    name: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]
    start: int
    size: int
    identity: tuple[int, ...] | None = None


def find_tensors(folder: Path) -> dict[str, Stored]:
    """List the tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
        ValueError: Neither or both files are there, a shard is missing or disagrees with the index, or a file is
            truncated or corrupt; the message names the file.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder}: expected {SINGLE} or {INDEX}, got both, which may disagree; remove one")
    if single.is_file():
        return tensors_of(single)
    if not index.is_file():
        present = sorted(path.name for path in folder.iterdir())[:12]
        raise ValueError(f"{folder}: expected {SINGLE} or {INDEX}, got {present}")
    return _sharded(index)


def tensors_of(path: Path) -> dict[str, Stored]:
    """List the tensors of one safetensors file.

    Raises:
        ValueError: The file is truncated, corrupt or of another kind.
    """
    with path.open("rb") as file:
        beginning = file.read(max(8, len(_LFS_POINTER)))
        if beginning.startswith(_LFS_POINTER):
            raise ValueError(f"{path}: expected the weights, got a Git LFS pointer; fetch them with `git lfs pull`")
        try:
            # The library checks lengths, offsets without gaps and the size of the file, but does not tell the offsets,
            # which reading without a mapping and byte-for-byte export need.
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path}: expected a whole safetensors file, got a damaged or other one ({error})"
            ) from error
        length = int.from_bytes(beginning[:8], "little")
        file.seek(8)
        header: dict[str, Any] = json.loads(file.read(length))
        identity = file_identity(file.fileno())
    header.pop("__metadata__", None)
    return {
        name: Stored(
            path=path,
            name=name,
            dtype=_DTYPES.get(entry["dtype"], str(entry["dtype"])),
            shape=tuple(entry["shape"]),
            start=8 + length + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
            identity=identity,
        )
        for name, entry in header.items()
    }


def read(parts: tuple[Stored, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read stored tensors that follow each other along the rows into one tensor with memory of its own, converted.

    Raises:
        ValueError: A file changed since its header was read.
    """
    first = parts[0]
    rows = sum(part.shape[0] for part in parts) if first.shape else 1
    tensor, row = torch.empty((rows, *first.shape[1:]), dtype=dtype), 0
    for part in parts:
        assert isinstance(part.dtype, torch.dtype)
        target = tensor[row : row + (part.shape[0] if part.shape else 1)]
        stored = target if part.dtype == dtype else torch.empty(target.shape, dtype=part.dtype)
        _read_into(stored, part)
        if stored is not target:
            target.copy_(stored)
        row += len(target)
    return tensor.reshape(first.shape if len(parts) == 1 else tensor.shape).to(device)


def read_all(
    wanted: Mapping[str, tuple[Stored, ...]],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    *,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Read several tensors, see `read`, with a few threads; each holds at most one stored tensor beside the results.

    With `mapped`, tensors that need neither conversion nor joining are views of the files.

    Raises:
        ValueError: A file changed since its header was read.
    """
    views = _mapped(wanted, dtypes) if mapped else {}
    rest = [name for name in wanted if name not in views]

    def one(name: str) -> Tensor:
        return read(wanted[name], dtype=dtypes[name], device=device)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        owned = threads.map(one, rest)
        return {name: tensor.to(device) for name, tensor in views.items()} | dict(zip(rest, owned, strict=True))


def check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise if one of these weights is not finite.

    A sum finds it ten times as fast as `isfinite`, which is asked only where the sum is beyond the format.

    Raises:
        ValueError: Its name, and how many of its numbers are not.
    """
    for name, tensor in tensors:
        if not (tensor.detach().sum().isfinite() or tensor.isfinite().all()):
            raise ValueError(f"{name}: expected finite weights, got {int((~tensor.isfinite()).sum())} that are not")


def same_content(first: Stored, second: Stored) -> bool:
    """Whether two stored tensors have the same shape, number format and bytes."""
    if (first.dtype, first.shape, first.size) != (second.dtype, second.shape, second.size):
        return False
    with first.path.open("rb") as one, second.path.open("rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        counts = (min(_BLOCK, first.size - place) for place in range(0, first.size, _BLOCK))
        return all(one.read(count) == other.read(count) for count in counts)


def _read_into(target: Tensor, stored: Stored) -> None:
    """Fill a contiguous tensor with the bytes of a stored one."""
    if not stored.size:
        return
    view = target.reshape(-1).view(torch.uint8).numpy().data
    with stored.path.open("rb", buffering=0) as file:
        _check_same(stored, file.fileno())
        file.seek(stored.start)
        while len(view):
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{stored.path}: expected {stored.start + stored.size} bytes, it became shorter")
            view = view[count:]


def _mapped(wanted: Mapping[str, tuple[Stored, ...]], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    alone = {name: parts[0] for name, parts in wanted.items() if len(parts) == 1 and parts[0].dtype == dtypes[name]}
    views: dict[str, Tensor] = {}
    for path in {stored.path for stored in alone.values()}:
        here = {name: stored for name, stored in alone.items() if stored.path == path}
        with safe_open(path, framework="pt") as file:
            views |= {name: file.get_tensor(stored.name) for name, stored in here.items()}
        with path.open("rb") as current:  # opened after the mapping: a file that was replaced before it shows here
            for stored in here.values():
                _check_same(stored, current.fileno())
    return views


def _check_same(stored: Stored, descriptor: int) -> None:
    """Raise if the file changed since its header was read."""
    if stored.identity is not None and file_identity(descriptor) != stored.identity:
        raise ValueError(f"{stored.path}: changed while it was read, by a save into the folder perhaps; load it again")


def _sharded(index: Path) -> dict[str, Stored]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map from tensor to file ({error!r})") from error
    files = sorted(set(places.values()))
    if strange := [file for file in files if Path(file).name != file or len(file) > _LONGEST]:
        raise ValueError(f"{index}: expected names of shards beside the index, got {strange!s:.200}")
    if absent := [file for file in files if not (index.parent / file).is_file()]:
        raise ValueError(f"{index}: {len(absent)} of {len(files)} shards are missing: {', '.join(absent)}")
    shards = {file: tensors_of(index.parent / file) for file in files}
    lost = [f"{name} in {file}" for name, file in places.items() if name not in shards[file]]
    extra = [f"{name} in {file}" for file in files for name in shards[file] if places.get(name) != file]
    if lost or extra:
        raise ValueError(
            f"{index}: disagrees with its shards: {len(lost)} tensors are not where it says {lost[:4]}, "
            f"{len(extra)} are not in it {extra[:4]}"
        )
    return {name: shards[file][name] for name, file in places.items()}
