"""Rows of the parquet files, one decoded row group at a time."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import io
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

from moteur.data.lerobot.cache import BoundedCache
from moteur.data.lerobot.conversion import converted
from moteur.data.lerobot.info import Feature

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
Rows = Sequence[int] | np.ndarray
RowCheck = Callable[[Path, int, Mapping[str, np.ndarray]], None]


class TableFile:
    """Columns of one parquet file.

    A row group is the smallest thing parquet can read; sets recorded by LeRobot have one per episode. Numeric columns
    of a group are decoded together and kept in a shared cache whose budget is in bytes.

    Args:
        path: A parquet file.
        features: The columns that will be asked for.
        cache: Where decoded row groups are kept.
        rows: How many rows the episode index expects in this file, at least.
        check: Called with the file's path, the number of a row and the numeric columns from that row on, when they have
            been decoded; raises what it finds wrong with them.

    Attributes:
        row_count: How many rows there are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, lacks a column, or has fewer rows than expected; file and column are named.
    """

    def __init__(
        self, path: Path, *, features: Mapping[str, Feature], cache: BoundedCache, rows: int, check: RowCheck
    ) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: data file is missing")
        self.path, self.features, self.cache, self._check = path, features, cache, check
        try:
            metadata = pq.read_metadata(path)
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
            raise ValueError(f"{path}: cannot be read as parquet ({error})") from error
        missing = [key for key in features if key not in names]
        if missing:
            raise ValueError(f"{path}: lacks the columns {missing}; it has {names[:40]}")
        if metadata.num_rows < rows:
            raise ValueError(f"{path}: holds {metadata.num_rows} rows, length in the episode index says {rows}")
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self.row_count: int = metadata.num_rows
        self._numeric = tuple(key for key, feature in features.items() if feature.is_numeric)

    def numbers(self, key: str, rows: Rows) -> np.ndarray:
        """Values of a numeric column at these rows, in the shape that `info.json` declares.

        A column declared with shape `[1]` gives scalars, as in LeRobot.
        """
        rows = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._ends, rows, side="right")
        first = int(groups[0])
        if (groups == first).all():
            return self._group(first, numeric=True)[key][rows - self._begin(first)]
        parts = {group: self._group(group, numeric=True)[key] for group in np.unique(groups).tolist()}
        return np.stack([parts[group][row - self._begin(group)] for group, row in zip(groups, rows, strict=True)])

    def texts(self, key: str, rows: Rows) -> list[str]:
        """Values of a string column at these rows.

        Raises:
            ValueError: A value is missing or no text; file, column and row are named.
        """
        texts = self._cells(key, rows)
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{self.path}: column {key}, row {row} must hold text, got {text!r:.60}")
        return texts

    def pictures(self, key: str, rows: Rows) -> UInt8[Tensor, "frame 3 height width"]:
        """Pictures of an image column at these rows, decoded from the bytes stored in the table.

        Raises:
            ValueError: A picture is not there, cannot be decoded, is not RGB or of another size than `info.json` says;
                file, column and row are named.
        """
        decoded: dict[int, np.ndarray] = {}
        for row in rows:
            if int(row) not in decoded:
                decoded[int(row)] = self._picture(key, int(row), self._cells(key, [int(row)])[0])
        return torch.from_numpy(np.stack([decoded[int(row)].transpose(2, 0, 1) for row in rows]))

    def _picture(self, key: str, row: int, cell: Any) -> np.ndarray:  # noqa: ANN401  # whatever the file holds
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ValueError(f"{self.path}: column {key}, row {row} holds no picture bytes")
        try:
            with Image.open(io.BytesIO(data)) as picture:
                mode, pixels = picture.mode, np.asarray(picture)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path}: column {key}, row {row} is not a picture ({error})") from error
        expected = self.features[key].height_and_width
        if mode != "RGB" or pixels.shape[:2] != expected:  # depth or grey values would change if they were converted
            raise ValueError(
                f"{self.path}: column {key}, row {row} is a picture of mode {mode} and size {pixels.shape[:2]}, "
                f"expected RGB of {expected}"
            )
        return pixels

    def _cells(self, key: str, rows: Rows) -> list[Any]:
        cells: list[Any] = []
        for group, row in zip(np.searchsorted(self._ends, np.asarray(rows), side="right").tolist(), rows, strict=True):
            try:
                cells.append(self._group(group, key=key)[key][int(row) - self._begin(group)].as_py())
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path}: column {key}, row {row} is no UTF-8 text ({error})") from error
        return cells

    def _begin(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _group(self, group: int, *, numeric: bool = False, key: str = "") -> Mapping[str, Any]:
        """One decoded row group: every numeric column as arrays, or the one other column `key` as Arrow values."""
        columns = self._numeric if numeric else (key,)
        name = (self.path, group, tuple(columns))
        return self.cache.get(name, lambda: self._read(group, columns), _bytes)

    def _read(self, group: int, columns: Sequence[str]) -> Mapping[str, Any]:
        try:
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(group, columns=list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: row group {group} cannot be read ({error})") from error
        decoded = {
            key: self._decode(key, table[key]) if self.features[key].is_numeric else table[key] for key in columns
        }
        if columns is self._numeric:
            self._check(self.path, self._begin(group), decoded)
        return decoded

    def _decode(self, key: str, column: pa.ChunkedArray) -> np.ndarray:
        feature, values = self.features[key], column.combine_chunks()
        where = f"{self.path}: column {key}"
        while pa.types.is_nested(values.type):
            if values.null_count or not any(is_kind(values.type) for is_kind in _LISTS):
                raise ValueError(f"{where} must hold lists of numbers without gaps, got {values.type}")
            if not pa.types.is_fixed_size_list(values.type):
                sizes = np.unique(values.value_lengths().to_numpy())
                if len(sizes) > 1:  # such lists can add up to the right number, shifted from row to row
                    raise ValueError(f"{where} must hold lists of one length, got {sizes[0]} to {sizes[-1]} values")
            values = values.flatten()
        if values.null_count:
            raise ValueError(f"{where} has {values.null_count} missing values")
        numbers = values.to_numpy(zero_copy_only=False)
        if not np.can_cast(numbers.dtype, feature.dtype, casting="same_kind"):
            raise ValueError(f"{where} is {column.type}, info.json says {feature.dtype}")
        try:
            flat = converted(numbers, feature.dtype)
        except OverflowError as error:
            raise ValueError(
                f"{where} is {column.type}, info.json says {feature.dtype}, which cannot hold {error}"
            ) from error
        shape = () if feature.shape == (1,) else feature.shape
        if flat.size != len(column) * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{where} holds {flat.size} values in {len(column)} rows, info.json says shape {shape}")
        return flat.reshape(len(column), *shape)


def _bytes(columns: Mapping[str, Any]) -> int:
    return sum(column.nbytes for column in columns.values())
