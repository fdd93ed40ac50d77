import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moteur.tokenizers import CosmosEncoder, CosmosSize, torchscript
from moteur.tokenizers.torchscript import read_torchscript

SIX = torch.arange(6.0).numpy().tobytes()
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


class Inner(nn.Module):
    """Tensors of every kind, and attributes of every kind that TorchScript pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.Conv2d(2, 2, 1)])
        for index, dtype in enumerate(DTYPES):
            self.register_buffer(f"kind_{index}", (torch.arange(6) % 2).reshape(2, 3).to(dtype))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("scalar", torch.tensor(3.5))
        self.register_buffer("absent", None)
        base = torch.arange(12.0).reshape(3, 4)
        self.register_buffer("whole", base)
        self.register_buffer("column", base[:, 1])
        self.register_buffer("turned", base.mT)
        self.numbers, self.pair, self.table, self.text = [1, 2], (1, 2.5), {"a": 1}, "text"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.numbers[0] + self.pair[1] + self.table["a"] + len(self.text)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.weight.sum()


@pytest.fixture(scope="module")
def script() -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and its files are what there is
        return torch.jit.script(Outer())


@pytest.fixture
def saved(script: torch.jit.ScriptModule, tmp_path: Path) -> Path:
    path = tmp_path / "module.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(script, path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> None:
    """Replace records of an archive, names given inside its folder; checksums are right again afterwards."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0] + "/"
        records = {name.removeprefix(root): archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(records).items():
            archive.writestr(root + name, data)


def test_tensors_equal_those_that_torch_reads(script: torch.jit.ScriptModule, saved: Path) -> None:
    tensors, expected = read_torchscript(saved), script.state_dict()
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_a_traced_tokenizer_gives_its_state_dict(tmp_path: Path) -> None:
    size = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)
    encoder = CosmosEncoder(size, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(encoder, torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16)), tmp_path / "e.jit")
    tensors = read_torchscript(tmp_path / "e.jit")
    assert set(tensors) == set(encoder.state_dict())
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_its_code_is_not_even_looked_at(saved: Path) -> None:
    def spoil(records: dict[str, bytes]) -> dict[str, bytes]:
        return {name: b"!!! not code" if name.startswith("code/") else data for name, data in records.items()}

    expected = read_torchscript(saved)
    rewrite(saved, spoil)
    tensors = read_torchscript(saved)
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


class Opener:
    """Pickles as a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(saved: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    rewrite(saved, lambda records: {**records, "data.pkl": pickle.dumps(Opener(trap), protocol=2)})
    with pytest.raises(ValueError, match=r"module.jit: not a readable TorchScript file.*it asks for \w+.open"):
        read_torchscript(saved)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02ctorch.jit\nload\n.", r"it asks for torch.jit.load"),
        (b"\x80\x02cmoteur.tokenizers.torchscript\nread_torchscript\n.", r"it asks for moteur"),
        (b"\x80\x02c__torch__\nA\n)\x81}(X\x01\x00\x00\x00ac__builtin__\neval\nsb.", r"it asks for __builtin__.eval"),
        (b"\x80\x02K\x01.", r"it holds int, not a module"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", r"it refers to something that is not a storage"),
        (b"", r"truncated, corrupt or of another kind"),
        (b"\x80\x02]", r"truncated, corrupt or of another kind"),
        (b"not a pickle", r"truncated, corrupt or of another kind"),
        # A module that holds itself, and one that the same attribute holds twice.
        (b"\x80\x02c__torch__\nA\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub.", r"module a stands in two places"),
    ],
)
def test_other_pickles_are_refused(saved: Path, pickled: bytes, message: str) -> None:
    rewrite(saved, lambda records: {**records, "data.pkl": pickled})
    with pytest.raises(ValueError, match=rf"module.jit: not a readable TorchScript file.*{message}"):
        read_torchscript(saved)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def view(
    *,
    key: str = "0",
    count: int = 6,
    offset: int = 0,
    size: Iterable[int] = (2, 3),
    stride: Iterable[int] = (3, 1),
    storage: bytes = b"",
) -> bytes:
    """The pickled description of one tensor, any number of it changed."""
    kind = b"(" + text("storage") + b"ctorch\nFloatStorage\n"
    storage = storage or kind + text(key) + text("cpu") + number(count) + b"tQ"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride) + tail


def module(attributes: bytes) -> bytes:
    """The pickled description of a module, its attributes given as names and values in turn."""
    return b"c__torch__\nA\n)\x81}(" + attributes + b"ub"


def one_tensor(name: str = "x", **changes: Any) -> bytes:  # noqa: ANN401 - those of `view`
    return b"\x80\x02" + module(text(name) + view(**changes)) + b"."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, r"tensor of size \(2, 3\) reaches beyond its storage of 6"),
        ({"stride": (4, 1)}, r"tensor of size \(2, 3\) reaches beyond its storage of 6"),
        ({"size": (6,)}, r"tensor with impossible size, stride or offset"),
        ({"offset": 2**63 - 1}, r"tensor of size \(2, 3\) reaches beyond its storage of 6"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, r"tensor with impossible size, stride or offset"),
        ({"count": 7}, r"storage 0 should have 28 bytes, has 24"),
        ({"key": "9"}, r"no item named 'archive/data/9'"),
    ],
)
def test_tensors_stay_inside_their_storages(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "module.jit"
    archived(path, one_tensor())
    assert torch.equal(read_torchscript(path)["x"], torch.arange(6.0).reshape(2, 3))
    archived(path, one_tensor(**changes))
    with pytest.raises(ValueError, match=message):
        read_torchscript(path)


def archived(path: Path, pickled: bytes, *, packing: int = zipfile.ZIP_STORED, storage: bytes = SIX) -> None:
    with zipfile.ZipFile(path, "w", packing, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
        archive.writestr("archive/data/0", storage)


def test_a_packed_archive_is_read(tmp_path: Path) -> None:
    archived(tmp_path / "module.jit", one_tensor(), packing=zipfile.ZIP_DEFLATED)
    assert torch.equal(read_torchscript(tmp_path / "module.jit")["x"], torch.arange(6.0).reshape(2, 3))


def nested() -> bytes:
    """A tuple that holds one tuple twice, forty levels deep: a trillion empty tuples if written out."""
    return b")q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(40))


def belittle(path: Path) -> None:
    """Let the directory of an archive say that its pickle unpacks to 100 bytes."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)


MANY = 2**28
EVERY = b"".join(text(f"x{place}") + b"h\x00" for place in range(100))
EMPTY = text("x") + view(size=(0,), stride=(1,))
DEEP = module(text("x" * 60_000) + module(text("y" * 60_000) + view()))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a large tensor without strides": (one_tensor(size=(MANY,), stride=(0,)), "more bytes than the file"),
    "a large constant without strides": (one_tensor("wavelets", size=(MANY,), stride=(0,)), "more bytes than the file"),
    "one tensor under many names": (
        b"\x80\x02" + module(text("x") + view(size=(MANY // 256,), stride=(0,)) + b"q\x00" + EVERY) + b".",
        "more bytes than the file",
    ),
    "a number of the memo": (b"\x80\x02]r" + (2 * 10**8).to_bytes(4, "little") + b".", "it holds list, not a module"),
    "a function given attributes": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + text("seen") + b"Ksb.",
        "state of something else than a module",
    ),
    "nested tuples as a key": (b"\x80\x02}" + nested() + b"Ns.", "it holds dict, not a module"),
    "many calls with many arguments": (
        b"\x80\x02(" + b"N" * 120_000 + b"tq\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00R" * 25_000 + b".",
        "it holds dict, not a module",
    ),
    "nested tuples for a storage": (one_tensor(storage=nested()), "not a description of a tensor"),
    "a tensor of very many dimensions": (
        one_tensor(size=[2**62] * 20_000, stride=[1] * 20_000),
        "tensor with impossible size, stride or offset",
    ),
    "modules that share their attributes": (
        b"\x80\x02"
        + module(text("a") + b"c__torch__\nA\n)\x81}(" + EMPTY + b"uq\x01b" + text("b") + b"c__torch__\nA\n)\x81h\x01b")
        + b".",
        "module [ab] stands in two places",
    ),
    "long names inside long names": (b"\x80\x02" + DEEP + b".", "a name of more than 500 letters"),
    "a pickle of more than a mebibyte": (b"\x80\x02" + b"]" * 2**21 + b".", "data.pkl unpacks to more than 1048576"),
    "sets": (b"\x80\x04" + b"\x8f" * 1000 + b".", "it uses EMPTY_SET, which no tensor needs"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path: Path, attack: str) -> None:
    pickled, message = HOSTILE[attack]
    archived(tmp_path / "module.jit", pickled)
    with pytest.raises(ValueError, match=f"module.jit: not a readable TorchScript file.*{message}"):
        read_torchscript(tmp_path / "module.jit")
    assert "seen" not in vars(torchscript._rebuild_tensor)


WATCHED = """
import resource, sys, time
from pathlib import Path
from moteur.tokenizers.torchscript import read_torchscript
for path in map(Path, sys.argv[1:]):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read_torchscript(path)
    except ValueError as error:
        took, more = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(path.name, int(took < 2), int(more < 200_000), error, sep="|")
"""


def test_what_a_hostile_file_costs_is_bounded(tmp_path: Path) -> None:
    huge = bytes(220 * 2**20)
    archived(tmp_path / "storage", one_tensor(count=len(huge) // 4), packing=zipfile.ZIP_DEFLATED, storage=huge)
    archived(tmp_path / "lie", b"\x80\x02" + huge, packing=zipfile.ZIP_DEFLATED)
    belittle(tmp_path / "lie")
    archived(tmp_path / "method", one_tensor(), packing=zipfile.ZIP_LZMA)
    archived(tmp_path / "lists", b"\x80\x02" + b"]" * 2**19 + b".")
    for number, (pickled, _) in enumerate(HOSTILE.values()):
        archived(tmp_path / f"hostile{number}", pickled)
    files = sorted(tmp_path.iterdir())
    child = [sys.executable, "-c", WATCHED, *map(str, files)]
    said = subprocess.run(child, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603 - our own code
    results = {name: rest for name, *rest in (line.split("|") for line in said.splitlines())}
    assert {name: result[:2] for name, result in results.items()} == {path.name: ["1", "1"] for path in files}
    for name, message in {
        "storage": "data/0 unpacks to more than",
        "lie": "Bad CRC-32",
        "method": "data.pkl is packed in a way that TorchScript is not",
        "lists": "it holds list, not a module",
    }.items():
        assert message in results[name][2]


@pytest.mark.parametrize("place", range(0, 22, 2))
def test_a_spoilt_end_of_the_archive_is_a_value_error(tmp_path: Path, place: int) -> None:
    path = tmp_path / "module.jit"
    for value in (0, 255):
        archived(path, one_tensor())
        data = bytearray(path.read_bytes())
        data[len(data) - 22 + place] = value
        path.write_bytes(data)
        with suppress(ValueError):
            read_torchscript(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"module.jit: not a readable TorchScript file, truncated, corrupt"):
        read_torchscript(saved)


def test_a_flipped_bit_in_any_tensor_is_an_error(saved: Path) -> None:
    data = saved.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        weight = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda info: info.file_size)
        stored = archive.read(weight)
    place = data.index(stored, weight.header_offset)
    saved.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match=r"module.jit: not a readable TorchScript file.*Bad CRC-32"):
        read_torchscript(saved)


def test_what_torch_save_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.jit"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"no constants.pkl: saved by torch.save, not torch.jit.save"):
        read_torchscript(path)


def test_big_endian_files_are_refused(saved: Path) -> None:
    rewrite(saved, lambda records: {**records, "byteorder": b"big"})
    with pytest.raises(ValueError, match=r"byte order is not little-endian"):
        read_torchscript(saved)
