import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from moteur.tokenizers import CosmosEncoder, CosmosSize
from moteur.tokenizers.torchscript import read_torchscript

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


def one_tensor(*, key: str = "0", count: int = 6, offset: int = 0, size: str = "23", stride: str = "31") -> bytes:
    """The pickle of a module with one tensor, its numbers (single digits) given."""

    def numbers(digits: str) -> bytes:
        return b"(" + b"".join(b"K" + bytes([int(digit)]) for digit in digits) + b"t"

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + bytes([75, count]) + b"tQ"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    view = storage + bytes([75, offset]) + numbers(size) + numbers(stride) + tail
    return b"\x80\x02c__torch__\nA\n)\x81}(" + text("x") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"ub."


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"offset": 1}, r"tensor of size \(2, 3\) reaches beyond its storage of 6"),
        ({"stride": "41"}, r"tensor of size \(2, 3\) reaches beyond its storage of 6"),
        ({"size": "6"}, r"tensor with impossible size \(6,\), stride \(3, 1\) or offset 0"),
        ({"count": 7}, r"storage 0 should have 28 bytes, has 24"),
        ({"key": "9"}, r"no item named 'archive/data/9'"),
    ],
)
def test_tensors_stay_inside_their_storages(tmp_path: Path, numbers: dict[str, object], message: str) -> None:
    path = tmp_path / "module.jit"

    def write(pickled: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/constants.pkl", b"\x80\x02).")
            archive.writestr("archive/data/0", torch.arange(6.0).numpy().tobytes())

    write(one_tensor())
    assert torch.equal(read_torchscript(path)["x"], torch.arange(6.0).reshape(2, 3))
    write(one_tensor(**numbers))
    with pytest.raises(ValueError, match=message):
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
