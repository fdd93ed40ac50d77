"""Read the tensors of a TorchScript file as data, without running its code."""

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
# What a hostile file may cost. The pickle of the released encoder has 12 KB, its names have some 40 letters.
_SPARE = 2**24  # bytes beyond the size of the file, for packed records and for tensors that share memory
_PICKLE = 2**20
_NAME = 500
_DIMENSIONS = 64


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Tensors of a saved TorchScript module, under the names of its `state_dict`, on the CPU.

    A TorchScript file is a zip archive of tensor storages, a pickle that describes which tensor views which storage,
    and source code. The code is ignored. The pickle is read by an unpickler that knows tensors, containers and plain
    objects and refuses every other name, so a hostile file cannot run code. Sizes are checked against the storages and
    the size of the file before memory is taken, and every record against the checksum of the archive. Only tensors held
    by parameters and buffers are found; a module frozen with `torch.jit.freeze` has none.

    Raises:
        ValueError: The file is truncated, corrupt or not TorchScript, or its pickle holds something else than tensors.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _tensors(_Archive(archive, path.stat().st_size))
        except (
            *(zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, struct.error),  # the archive
            *(KeyError, IndexError, TypeError),  # the pickle
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

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}


class _Archive:
    """Records of the zip archive by their name inside its single folder; each storage is decoded once.

    All records together, and all tensors together, may have the size of the file and `_SPARE` bytes.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"expected one data.pkl, got {len(roots)}")
        self._archive = archive
        self._root = roots[0]
        self._unread = self._untaken = size + _SPARE
        if f"{self._root}constants.pkl" not in archive.namelist():
            raise ValueError("no constants.pkl: saved by torch.save, not torch.jit.save")
        if f"{self._root}byteorder" in archive.namelist() and self.read("byteorder") != b"little":
            raise ValueError("byte order is not little-endian")
        self._storages: dict[str, Tensor] = {}

    def read(self, name: str, most: int | None = None) -> bytes:
        """Read a record of at most so many bytes; the zip reader verifies its checksum."""
        info = self._archive.getinfo(self._root + name)
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError(f"{name} is packed in a way that TorchScript is not")
        room = self._unread if most is None else most
        if info.file_size > room:
            raise ValueError(f"{name} unpacks to more than {room} bytes")
        self._unread -= info.file_size
        with self._archive.open(info) as record:
            return record.read(info.file_size)  # told the number, it stops there, whatever the packed data hold

    def tensor(self, view: _View) -> Tensor:
        """Create a view of a storage after checking its bounds; views share memory as they did when saved."""
        match view:
            case _View(_Storage() as storage, int(offset), tuple(size), tuple(stride)):
                data = self._flat(storage)
            case _:
                raise TypeError("not a description of a tensor")
        numbers = (offset, *size, *stride)
        if (
            len(size) != len(stride)
            or len(size) > _DIMENSIONS
            or not all(isinstance(number, int) and number >= 0 for number in numbers)
        ):
            raise ValueError("tensor with impossible size, stride or offset")
        last = offset + sum((places - 1) * step for places, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.length:
            raise ValueError(f"tensor of size {size} reaches beyond its storage of {storage.length}")
        self._untaken -= math.prod(size) * storage.dtype.itemsize
        if self._untaken < 0:
            raise ValueError("its tensors would have more bytes than the file")
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


def _mapping(*_: object) -> dict[str, object]:
    """Replaces `OrderedDict`."""
    return {}


_KNOWN: dict[str, Callable[..., object] | _StorageKind] = {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "collections OrderedDict": _mapping,
    **{f"torch.jit._pickle build_{kind}list": _first for kind in ("int", "tensor", "double", "bool")},
    "torch.jit._pickle restore_type_tag": _first,
    **{f"torch {name}": _StorageKind(dtype) for name, dtype in _DTYPES.items()},
}


class _Stack:
    """The machine that a pickle is a program for, with the instructions that TorchScript writes and no others.

    `pickle.Unpickler` imports nothing either when told so, but a few bytes make it reserve gigabytes (for a number of
    its memo), hash nested tuples for ever (as keys) or set attributes of the functions above. Here only strings are
    keys, and only the attributes of objects are ever set. What lists hold is never asked for, so they stay empty.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        self.held.append(value)

    def pop(self, count: int) -> list[Any]:
        """The last values."""
        if count > len(self.held):
            raise IndexError("it takes more than there is")
        return [self.held.pop() for _ in range(count)][::-1]

    def marked(self) -> list[Any]:
        """The values since the last mark."""
        return self.pop(len(self.held) - self.marks.pop())

    def remember(self, place: int) -> None:
        self.memo[place] = self.held[-1]

    def name(self, words: str) -> None:
        """Look up what the pickle would import."""
        if words.startswith(("__torch__ ", "__torch__.")):
            self.push(_Object)
        elif words in _KNOWN:
            self.push(_KNOWN[words])
        else:
            raise ValueError(f"it asks for {words.replace(' ', '.')}, which no tensor needs")

    def call(self) -> None:
        function, arguments = self.pop(2)
        self.push(function(*arguments[:8]))  # none takes more, and a long tuple may be given again and again

    def set_items(self, pairs: list[Any]) -> None:
        items = self.held[-1]
        if not isinstance(items, dict):
            raise TypeError("items of something else than a mapping")
        items.update((key, value) for key, value in zip(pairs[::2], pairs[1::2], strict=True) if isinstance(key, str))

    def set_state(self) -> None:
        (state,) = self.pop(1)
        module = self.held[-1]
        if not isinstance(module, _Object) or not isinstance(state, dict):
            raise TypeError("state of something else than a module")
        module.attributes = state

    def refer(self) -> None:
        match self.pop(1):
            case [("storage", _StorageKind(dtype), str(key), str(), int(length))]:
                self.push(_Storage(key, dtype, length))
            case _:
                raise ValueError("it refers to something that is not a storage")


_STEPS: dict[str, Callable[[_Stack, Any], object]] = {
    "PROTO": lambda _, __: None,
    "MARK": lambda stack, _: stack.marks.append(len(stack.held)),
    "NONE": lambda stack, _: stack.push(None),
    "NEWTRUE": lambda stack, _: stack.push(True),  # noqa: FBT003  what the pickle says
    "NEWFALSE": lambda stack, _: stack.push(False),  # noqa: FBT003
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Stack.push),
    "EMPTY_TUPLE": lambda stack, _: stack.push(()),
    "TUPLE1": lambda stack, _: stack.push(tuple(stack.pop(1))),
    "TUPLE2": lambda stack, _: stack.push(tuple(stack.pop(2))),
    "TUPLE3": lambda stack, _: stack.push(tuple(stack.pop(3))),
    "TUPLE": lambda stack, _: stack.push(tuple(stack.marked())),
    "EMPTY_LIST": lambda stack, _: stack.push([]),
    "APPEND": lambda stack, _: stack.pop(1),
    "APPENDS": lambda stack, _: stack.marked(),
    "EMPTY_DICT": lambda stack, _: stack.push({}),
    "SETITEM": lambda stack, _: stack.set_items(stack.pop(2)),
    "SETITEMS": lambda stack, _: stack.set_items(stack.marked()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Stack.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda stack, place: stack.push(stack.memo[place])),
    "GLOBAL": _Stack.name,
    "NEWOBJ": lambda stack, _: stack.call(),
    "REDUCE": lambda stack, _: stack.call(),
    "BUILD": lambda stack, _: stack.set_state(),
    "BINPERSID": lambda stack, _: stack.refer(),
}


def _unpickled(data: bytes) -> object:
    stack = _Stack()
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name == "STOP":
            break
        if instruction.name not in _STEPS:
            raise ValueError(f"it uses {instruction.name}, which no tensor needs")
        _STEPS[instruction.name](stack, argument)
    return stack.held.pop()


def _tensors(archive: _Archive) -> dict[str, Tensor]:
    """Tensors reachable from the root object along attributes, named by their path."""
    root = _unpickled(archive.read("data.pkl", _PICKLE))
    if not isinstance(root, _Object):
        raise TypeError(f"it holds {type(root).__name__}, not a module")
    found: dict[str, Tensor] = {}
    waiting = [("", root)]
    seen = {id(root.attributes)}  # of modules too that share them
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            if len(prefix) + len(name) > _NAME:
                raise ValueError(f"a name of more than {_NAME} letters")
            if isinstance(value, _View):
                found[prefix + name] = archive.tensor(value)
            elif isinstance(value, _Object):
                if id(value.attributes) in seen:
                    raise ValueError(f"module {prefix + name} stands in two places")
                seen.add(id(value.attributes))
                waiting.append((f"{prefix}{name}.", value))
    return found
