"""Read the tensors of a TorchScript file as data, without running its code."""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of a saved TorchScript module, under the names of its `state_dict`, on the CPU.

    A TorchScript file is a zip archive of tensor storages, a pickle that describes which tensor views which storage,
    and source code. The code is ignored. The pickle is read by an unpickler that knows tensors, containers and plain
    objects and refuses every other name, so a hostile file cannot run code. Sizes are checked against the storages, and
    every record against the checksum of the archive. Only tensors held by parameters and buffers are found; a module
    frozen with `torch.jit.freeze` has none.

    Raises:
        ValueError: The file is truncated, corrupt or not TorchScript, or its pickle holds something else than tensors.
        OSError: The file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors(_Archive(archive))
    except (
        *(zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, struct.error),  # the archive
        *(pickle.UnpicklingError, KeyError, IndexError, TypeError, AttributeError, RecursionError),  # the pickle
        *(ValueError, OverflowError, RuntimeError, MemoryError),  # either, or the tensors
    ) as error:
        raise ValueError(
            f"{path}: not a readable TorchScript file, truncated, corrupt or of another kind ({error})"
        ) from error


class _Storage(NamedTuple):
    """Reference to a storage in the pickle."""

    key: str
    dtype: torch.dtype
    length: int


class _View(NamedTuple):
    """Description of a tensor in the pickle, not yet checked."""

    storage: object
    offset: object
    size: object
    stride: object


class _StorageKind(NamedTuple):
    """Stand-in for `torch.FloatStorage` and the other storage classes: a dtype."""

    dtype: torch.dtype


class _Object:
    """Stand-in for an object of any class that the file defines: its attributes."""

    attributes: Mapping[str, object] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.attributes = {str(name): value for name, value in state.items()}


class _Archive:
    """Records of the zip archive by their name inside its single folder; each storage is decoded once."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"expected one data.pkl, got {len(roots)}")
        self._archive = archive
        self._root = roots[0]
        if f"{self._root}constants.pkl" not in archive.namelist():
            raise ValueError("no constants.pkl: saved by torch.save, not torch.jit.save")
        if f"{self._root}byteorder" in archive.namelist() and self.read("byteorder") != b"little":
            raise ValueError("byte order is not little-endian")
        self._storages: dict[str, Tensor] = {}

    def read(self, name: str) -> bytes:
        """Read a record; the zip reader verifies its checksum."""
        return self._archive.read(self._root + name)

    def tensor(self, view: _View) -> Tensor:
        """Create a view of a storage after checking its bounds; views share memory as they did when saved."""
        match view:
            case _View(_Storage() as storage, int(offset), tuple(size), tuple(stride)):
                data = self._flat(storage)
            case _:
                raise TypeError(f"not a description of a tensor: {view}")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"tensor with impossible size {size}, stride {stride} or offset {offset}")
        last = offset + sum((places - 1) * step for places, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.length:
            raise ValueError(f"tensor of size {size} reaches beyond its storage of {storage.length}")
        return data.as_strided(size, stride, offset)

    def _flat(self, storage: _Storage) -> Tensor:
        key, dtype, length = storage
        if key not in self._storages:
            data = self.read(f"data/{key}")
            if len(data) != length * dtype.itemsize:
                raise ValueError(f"storage {key} should have {length * dtype.itemsize} bytes, has {len(data)}")
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[key] = flat
        if self._storages[key].dtype != dtype or self._storages[key].numel() != length:
            raise ValueError(f"storage {key} is described in two ways")
        return self._storages[key]


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> _View:
    """Replaces the function that the pickle calls to create a tensor."""
    return _View(storage, offset, size, stride)


def _first(value: object, *_: object) -> object:
    """Replaces the functions that the pickle calls to create typed containers, which stay plain here."""
    return value


_KNOWN: dict[tuple[str, str], Callable[..., object] | _StorageKind] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "tensor", "double", "bool")},
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch", name): _StorageKind(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that looks names up in the table above and never imports anything."""

    def find_class(self, module: str, name: str, /) -> object:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Object
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")
        return _KNOWN[module, name]

    def persistent_load(self, pid: object, /) -> _Storage:
        match pid:
            case ("storage", _StorageKind(dtype), str(key), str(), int(length)):
                return _Storage(key, dtype, length)
            case _:
                raise pickle.UnpicklingError("it refers to something that is not a storage")


def _tensors(archive: _Archive) -> dict[str, Tensor]:
    """Tensors reachable from the root object along attributes, named by their path."""
    root = _Unpickler(io.BytesIO(archive.read("data.pkl"))).load()
    if not isinstance(root, _Object):
        raise TypeError(f"it holds {type(root).__name__}, not a module")
    found: dict[str, Tensor] = {}
    waiting = [("", root)]
    seen = {id(root)}
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            if isinstance(value, _View):
                found[prefix + name] = archive.tensor(value)
            elif isinstance(value, _Object):
                if id(value) in seen:
                    raise ValueError(f"module {prefix + name} stands in two places")
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return found
