"""Tensors in safetensors files: checked first, then read straight into memory of their own, or mapped if asked for.

A mapped tensor costs nothing until it is used, and follows whatever later happens to the file: one that is overwritten
in place changes the weights, one that is cut short kills the process. So it is not the default. A tensor that is
converted is never mapped: the mapping would count towards resident memory beside the copy.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PATTERNS = ("config.json", "stats.json", SINGLE, INDEX, "model-*.safetensors")
"""What may be needed of a Hub repository."""

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


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies.

    Attributes:
        path: File.
        name: Its name in the file.
        dtype: What kind of number it is stored as; the format's own name for one that PyTorch cannot hold.
        shape: Its shape.
        start: First byte in the file.
        size: Bytes.
        identity: The file as it was when its header was checked: device, inode, length, time of change.
    """

    path: Path
    name: str
    dtype: torch.dtype | str
    shape: tuple[int, ...]
    start: int
    size: int
    identity: tuple[int, ...] | None = None


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Headers are checked against the length of the files; no tensor is read.

    Raises:
        ValueError: Neither or both are there, a shard is missing or does not hold what the index says, or a file is
            truncated or corrupt; it is named.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder}: holds both {SINGLE} and {INDEX}, which may disagree; keep one")
    if single.is_file():
        return tensors_of(single)
    if not index.is_file():
        present = sorted(path.name for path in folder.iterdir())[:12]
        raise ValueError(f"{folder}: expected {SINGLE} or {INDEX}, got {present}")
    return _sharded(index)


def tensors_of(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file.

    Raises:
        ValueError: The file is truncated, corrupt or of another kind.
    """
    with path.open("rb") as file:
        beginning = file.read(max(8, len(_LFS_POINTER)))
        if beginning.startswith(_LFS_POINTER):
            raise ValueError(f"{path}: is a Git LFS pointer and not the file itself, fetch it with `git lfs pull`")
        try:
            # The library checks the header completely: lengths, offsets without gaps, and the size of the file.
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a whole safetensors file, truncated, corrupt or of another kind ({error})"
            ) from error
        length = int.from_bytes(beginning[:8], "little")
        file.seek(8)
        header: dict[str, Any] = json.loads(file.read(length))
        identity = _identity(file.fileno())
    return {
        name: Stored(
            path=path,
            name=name,
            dtype=_DTYPES[entry["dtype"]] if entry["dtype"] in _DTYPES else str(entry["dtype"]),
            shape=tuple(entry["shape"]),
            start=8 + length + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
            identity=identity,
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read(stored: Stored, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor in memory of its own, converted.

    Raises:
        ValueError: The file is not the one that was checked: changed, or replaced by a save.
    """
    assert isinstance(stored.dtype, torch.dtype)
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    if stored.size:
        with stored.path.open("rb", buffering=0) as file:
            _check_same(stored, file.fileno())
            file.seek(stored.start)
            _fill(tensor.reshape(-1).view(torch.uint8).numpy().data, file, stored)
    return tensor.to(device=device, dtype=dtype)


def read_all(
    wanted: Mapping[str, Stored], dtypes: Mapping[str, torch.dtype], device: torch.device, *, mapped: bool = False
) -> dict[str, Tensor]:
    """Several tensors at once, a few threads reading; at most one copy more than that many tensors is in memory.

    Args:
        wanted: What to read.
        dtypes: What to hold it in.
        device: Where to.
        mapped: Let tensors that need no conversion be views of their files.

    Raises:
        ValueError: A file is not the one that was checked: changed, or replaced by a save.
    """
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:

        def one(name: str) -> Tensor:
            return read(wanted[name], dtype=dtypes[name], device=device)

        views = _mapped(wanted, dtypes) if mapped else {}
        rest = [name for name in wanted if name not in views]
        owned = dict(zip(rest, threads.map(one, rest), strict=True))
        return {name: tensor.to(device) for name, tensor in views.items()} | owned


def same_content(first: Stored, second: Stored) -> bool:
    """Whether two stored tensors hold the same bytes under the same shape and kind of number."""
    if (first.dtype, first.shape, first.size) != (second.dtype, second.shape, second.size):
        return False
    with first.path.open("rb") as one, second.path.open("rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        left = first.size
        while left:
            block = min(left, _BLOCK)
            if one.read(block) != other.read(block):
                return False
            left -= block
    return True


def _fill(target: memoryview, file: FileIO, stored: Stored) -> None:
    filled = 0
    while filled < len(target):
        count = file.readinto(target[filled:])
        if not count:
            raise ValueError(
                f"{stored.path}: ends before byte {stored.start + stored.size}, it was longer when checked"
            )
        filled += count


def _mapped(wanted: Mapping[str, Stored], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {}
    for path in {stored.path for stored in wanted.values()}:
        with safe_open(path, framework="pt") as file:
            for name, stored in wanted.items():
                if stored.path == path and stored.dtype == dtypes[name]:
                    views[name] = file.get_tensor(stored.name)
        with path.open("rb") as current:  # the map was made before: a file replaced since then shows here
            for stored in wanted.values():
                if stored.path == path:
                    _check_same(stored, current.fileno())
    return views


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_same(stored: Stored, descriptor: int) -> None:
    """Refuse a file that is not the one whose header was checked: half of one model and half of another is none."""
    if stored.identity is not None and _identity(descriptor) != stored.identity:
        raise ValueError(f"{stored.path}: changed while it was read, by a save into the folder perhaps; load it again")


def _sharded(index: Path) -> dict[str, Stored]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map from tensor to file ({error!r})") from error
    files = sorted(set(places.values()))
    strange = [file for file in files if Path(file).name != file]
    if strange:
        raise ValueError(f"{index}: expected shards beside the index, got {strange}")
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise ValueError(f"{index}: {len(absent)} of {len(files)} shards are not there: {', '.join(absent)}")
    shards = {file: tensors_of(index.parent / file) for file in files}
    lost = [f"{name} in {file}" for name, file in places.items() if name not in shards[file]]
    extra = [f"{name} in {file}" for file in files for name in shards[file] if places.get(name) != file]
    if lost or extra:
        raise ValueError(
            f"{index}: disagrees with its shards: not where it says {_few(lost)}, there without a word {_few(extra)}"
        )
    return {name: shards[file][name] for name, file in places.items()}


def _few(names: Sequence[str]) -> str:
    return f"{list(names[:4])} ({len(names)} in all)"
