"""Parquet files of a set: columns read one row group at a time, and tables in the layout LeRobot and pandas expect."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from moteur.data.lerobot.info import Feature
from moteur.data.lerobot.open_files import BoundedCache

Rows = Sequence[int] | np.ndarray
RowCheck = Callable[[Path, int, Mapping[str, np.ndarray]], None]
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
# Rows that a recording which was cut off may leave beyond what is promised: ten hours at 30 Hz.
SURPLUS_ROWS = 2**20
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: a damaged column name


class TableFile:
    """Columns of one parquet file, read one row group at a time, the smallest thing that parquet can read.

    Sets recorded by LeRobot have one row group per episode. Numeric columns of a group are decoded together. What is
    not as `features` says is refused by file, column and row.

    Args:
        path: A parquet file.
        features: The columns that will be asked for.
        cache: Where decoded row groups are kept; its budget is in bytes.
        check: Called with the file's path, the number of a row, and the numeric columns from that row on when they have
            been decoded; raises if they are wrong.
    """

    def __init__(self, path: Path, *, features: Mapping[str, Feature], cache: BoundedCache, check: RowCheck) -> None:
        self.path, self.features, self.cache, self._check = path, features, cache, check
        with open_parquet(path, list(features)) as file:
            metadata = file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self.num_rows: int = sum(sizes)
        self._numeric = tuple(key for key, feature in features.items() if feature.is_numeric)
        self._name = f"{path} {self._numeric}"  # a text keeps its hash, which every look into the cache asks for

    def numbers(self, key: str, rows: Rows) -> np.ndarray:
        """Values of a numeric column at these rows, in the shape that `info.json` declares.

        A column declared with shape `[1]` gives scalars, as in LeRobot.
        """
        rows = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._ends, rows, side="right")
        first = int(groups[0])
        if (groups == first).all():
            return self._group(first)[key][rows - self._begin(first)]
        parts = {group: self._group(group)[key] for group in np.unique(groups).tolist()}
        return np.stack([parts[group][row - self._begin(group)] for group, row in zip(groups, rows, strict=True)])

    def texts(self, key: str, rows: Rows) -> list[str]:
        """Values of a string column at these rows."""
        texts = [self._cell(key, int(row)) for row in rows]
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{self.path}: column {key}, row {row}: expected text, got {text!r:.60}")
        return texts

    def pictures(self, key: str, rows: Rows) -> UInt8[Tensor, "frame 3 height width"]:
        """Pictures of an image column at these rows, decoded from the bytes stored in the table."""
        decoded = {row: self._picture(key, row) for row in {int(row) for row in rows}}
        return torch.from_numpy(np.stack([decoded[int(row)].transpose(2, 0, 1) for row in rows]))

    def _picture(self, key: str, row: int) -> np.ndarray:
        cell, where = self._cell(key, row), f"{self.path}: column {key}, row {row}"
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ValueError(f"{where}: expected the bytes of a picture, got {cell!r:.60}")
        expected = self.features[key].height_and_width
        try:
            with Image.open(io.BytesIO(data)) as picture:
                mode, size = picture.mode, (picture.height, picture.width)  # of the header: nothing is decoded yet
                if (mode, size) == ("RGB", expected):  # depth or grey values would change if they were converted
                    return np.asarray(picture)
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise ValueError(f"{where}: expected a picture, got bytes that are none ({error})") from error
        raise ValueError(f"{where}: expected an RGB picture of {expected}, got {mode} of {size}")

    def _cell(self, key: str, row: int) -> Any:  # noqa: ANN401  # whatever the file holds
        group = int(np.searchsorted(self._ends, row, side="right"))
        try:
            return self._group(group, key)[key][row - self._begin(group)].as_py()
        except UnicodeDecodeError as error:
            where = f"{self.path}: column {key}, row {row}"
            raise ValueError(f"{where}: expected UTF-8 text, got other bytes ({error})") from error

    def _begin(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _group(self, group: int, key: str = "") -> Mapping[str, Any]:
        """One decoded row group: every numeric column as arrays, or the one other column `key` as Arrow values."""
        columns = (key,) if key else self._numeric
        return self.cache.get((self._name, group, key), lambda: self._read(group, columns), _bytes)

    def _read(self, group: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                table = file.read_row_group(group, columns=list(columns))
        except _UNREADABLE as error:
            raise ValueError(f"{self.path}: row group {group}: expected readable data, got damage ({error})") from error
        rows = int(self._ends[group]) - self._begin(group)
        if len(table) != rows:
            raise ValueError(f"{self.path}: row group {group}: expected {rows} rows, got {len(table)}")
        decoded = {
            key: self._decode(key, table[key]) if self.features[key].is_numeric else table[key] for key in columns
        }
        if columns is self._numeric:
            self._check(self.path, self._begin(group), decoded)
        return decoded

    def _decode(self, key: str, column: pa.ChunkedArray) -> np.ndarray:
        feature, values = self.features[key], column.combine_chunks()
        shape = () if feature.shape == (1,) else feature.shape
        declared = f"{self.path}: column {key}: expected {feature.dtype} of shape {shape} as info.json says"
        while pa.types.is_nested(values.type):
            if values.null_count or not any(is_kind(values.type) for is_kind in _LISTS):
                raise ValueError(f"{declared}, got {values.type}, {values.null_count} missing")
            if not pa.types.is_fixed_size_list(values.type):
                sizes = np.unique(values.value_lengths().to_numpy())
                if len(sizes) > 1:  # such lists can add up to the right number, shifted from row to row
                    raise ValueError(f"{declared}, got lists of {sizes[0]} to {sizes[-1]} values")
            values = values.flatten()
        if values.null_count:
            raise ValueError(f"{declared}, got {values.null_count} missing values")
        numbers = values.to_numpy(zero_copy_only=False)
        if not np.can_cast(numbers.dtype, feature.dtype, casting="same_kind"):
            raise ValueError(f"{declared}, got {column.type}")
        try:
            flat = cast_exactly(numbers, feature.dtype)
        except OverflowError as error:
            raise ValueError(f"{declared}, got {error}") from error
        if flat.size != len(column) * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{declared}, got {flat.size} values in {len(column)} rows")
        return flat.reshape(len(column), *shape)


def _bytes(columns: Mapping[str, Any]) -> int:
    return sum(column.nbytes for column in columns.values())


def open_parquet(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a parquet file that has these columns; an error names the file, and those that are missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)  # of pages that have one
        names = file.schema_arrow.names
    except _UNREADABLE as error:
        raise ValueError(f"{path}: expected a parquet file, got one that cannot be read ({error})") from error
    missing = [name for name in columns if name not in names]
    if missing:
        file.close()
        raise ValueError(f"{path}: expected the columns {missing}, got {names[:40]}")
    return file


def read_table(path: Path, columns: Sequence[str] = (), *, promised: int | None = None) -> pa.Table:
    """Read these columns of a parquet file, all if none are given; an error names the file.

    Of a file with far more rows than are promised, nothing is read.
    """
    with open_parquet(path, columns) as file:
        if promised is not None and file.metadata.num_rows > promised + SURPLUS_ROWS:
            raise ValueError(f"{path}: expected {promised} rows by info.json, got {file.metadata.num_rows}")
        try:
            return file.read(columns=list(columns) or None)
        except _UNREADABLE as error:
            raise ValueError(f"{path}: expected a parquet file, got one that cannot be read ({error})") from error


def read_rows(path: Path, *, promised: int | None = None) -> list[dict[str, Any]]:
    """Read a parquet file as one dictionary per row; an error names the file."""
    try:
        return read_table(path, promised=promised).to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got other bytes ({error})") from error


def cast_exactly(values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert numbers or booleans to a type: rounded where the type has fractions, never changed otherwise.

    Raises:
        OverflowError: The type cannot hold one of them; the message is that number.

    Examples:
        >>> cast_exactly(np.array([1, 255]), "uint8")
        array([  1, 255], dtype=uint8)
        >>> cast_exactly(np.array([1, 256]), "uint8")
        Traceback (most recent call last):
        OverflowError: 256
    """
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        stored = values.astype(dtype)
    held = np.isfinite(stored) | ~np.isfinite(values) if stored.dtype.kind == "f" else stored == values
    if not held.all():
        raise OverflowError(repr(values[~held].reshape(-1)[0].item()))
    return stored


def frame_table(columns: Mapping[str, Sequence[Any]], features: Mapping[str, Feature]) -> pa.Table:
    """Table with one row per frame: scalars for shape `[1]`, lists for arrays, PNG bytes for pictures."""
    stored = {key: feature for key, feature in features.items() if feature.dtype != "video"}
    types = {key: _column_types(feature) for key, feature in stored.items()}
    described = {key: hub_type for key, (_, hub_type) in types.items()}
    schema = pa.schema(
        [pa.field(key, arrow_type) for key, (arrow_type, _) in types.items()],
        metadata={"huggingface": json.dumps({"info": {"features": described}})},
    )
    return pa.table([[_plain(value, stored[key]) for value in columns[key]] for key in stored], schema=schema)


def task_table(tasks: Sequence[str]) -> pa.Table:
    """Table of task texts by number; the text is the pandas index, which LeRobot looks it up by."""
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}],
        "columns": [column | {"metadata": None}, index | {"metadata": None}],
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table([list(range(len(tasks))), list(tasks)], schema=schema)


def png_bytes(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Encode a picture without loss."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _plain(value: Any, feature: Feature) -> Any:  # noqa: ANN401  # whatever a cell may hold
    if feature.dtype == "image":
        return {"bytes": value, "path": None}
    if isinstance(value, np.ndarray):
        return value.reshape(()).item() if feature.shape == (1,) else value.tolist()
    return value


def _column_types(feature: Feature) -> tuple[pa.DataType, dict[str, Any]]:
    """A column's type in Arrow, and in the `datasets` library that LeRobot reads it with."""
    if feature.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.dtype == "string":
        return pa.string(), value
    kind, dims = pa.from_numpy_dtype(np.dtype(feature.dtype)), len(feature.shape)
    if feature.shape == (1,):
        return kind, value
    if dims == 1:
        return pa.list_(kind, feature.shape[0]), {"feature": value, "length": feature.shape[0], "_type": "List"}
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind, {"shape": list(feature.shape), "dtype": feature.dtype, "_type": f"Array{dims}D"}
