"""The episode index of a set: where each episode's rows and video frames are, and the task texts."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from moteur.data.lerobot.conversion import converted
from moteur.data.lerobot.info import Info

EPISODES_GLOB = "meta/episodes/chunk-*/file-*.parquet"


@dataclass(frozen=True)
class VideoSpans:
    """Where one camera's episodes are: chunk and file number, and the number of the first frame in that file."""

    chunk: Int64[np.ndarray, " episode"]
    file: Int64[np.ndarray, " episode"]
    first_frame: Int64[np.ndarray, " episode"]


@dataclass(frozen=True)
class Episodes:
    """One entry per episode; nothing here grows with the number of frames.

    Attributes:
        length: Number of frames.
        start: Index of the first frame in the whole set.
        chunk: Chunk number of the parquet file (v3.0); zeros for v2.1, which derives it from the episode number.
        file: Number of the parquet file within its chunk (v3.0), or the episode number (v2.1).
        file_start: Index, in the whole set, of the first row of that parquet file.
        videos: Camera to its `VideoSpans`.
    """

    length: Int64[np.ndarray, " episode"]
    start: Int64[np.ndarray, " episode"]
    chunk: Int64[np.ndarray, " episode"]
    file: Int64[np.ndarray, " episode"]
    file_start: Int64[np.ndarray, " episode"]
    videos: Mapping[str, VideoSpans]

    def __len__(self) -> int:
        return len(self.length)


def read_episodes(root: Path, info: Info) -> Episodes:
    """Read the episode index of either version.

    Rows beyond `info.json`'s count are ignored: they belong to an episode whose recording was cut off before it was
    complete.

    Raises:
        FileNotFoundError: A file of the index is missing.
        ValueError: The index contradicts itself or `info.json`; file and field are named.
    """
    episodes = _read_v30(root, info) if info.version == "v3.0" else _read_v21(root, info)
    total = int(episodes.length.sum())
    if total != info.frames:
        raise ValueError(f"{root}: info.json says total_frames {info.frames}, the episode lengths add up to {total}")
    return episodes


def read_tasks(root: Path, info: Info) -> Mapping[int, str]:
    """Read the task texts by their `task_index`.

    Raises:
        FileNotFoundError: There is no task file.
        ValueError: The file is damaged or lacks a column; file and field are named.
    """
    if info.version == "v2.1":
        path = root / "meta/tasks.jsonl"
        rows = [(row.get("task_index"), row.get("task")) for row in _read_jsonl(path)]
    else:
        path = root / "meta/tasks.parquet"
        table = read_table(path)
        # LeRobot names the text column "task" or, through some versions of pandas, "__index_level_0__".
        others = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(others) != 1:
            raise ValueError(f"{path}: expected task_index and one text column, got {table.column_names}")
        try:
            rows = list(zip(table["task_index"].to_pylist(), table[others[0]].to_pylist(), strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: column {others[0]} is no UTF-8 text ({error})") from error
    tasks: dict[int, str] = {}
    for number, text in rows:
        if not isinstance(number, int) or not isinstance(text, str):
            raise ValueError(f"{path}: expected an integer task_index and a text, got {number!r} and {text!r}")
        if tasks.setdefault(number, text) != text:
            raise ValueError(f"{path}: task_index {number} has two texts, {tasks[number]!r} and {text!r}")
    return tasks


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a parquet file; errors name the file and the column.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise ValueError(f"{path}: lacks the columns {missing}; it has {names[:40]}")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a damaged column name
        raise ValueError(f"{path}: cannot be read as parquet ({error})") from error


def _read_v30(root: Path, info: Info) -> Episodes:
    paths = sorted(root.glob(EPISODES_GLOB))
    if not paths and info.episodes:
        raise FileNotFoundError(f"{root / EPISODES_GLOB}: no such file, but info.json says {info.episodes} episodes")
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    for key in info.video_keys:
        names += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    tables = [read_table(path, names) for path in paths]
    where = root / "meta/episodes"
    column = {name: _numbers(paths, name, [table[name] for table in tables]) for name in names}
    order = np.argsort(column["episode_index"], kind="stable")[: info.episodes]
    if not np.array_equal(column["episode_index"][order], np.arange(info.episodes)):
        found = len(column["episode_index"])
        raise ValueError(f"{where}: episode_index must be 0 to {info.episodes - 1}, once each; found {found} rows")
    column = {name: values[order] for name, values in column.items()}
    integers = {name: _integers(where, name, part) for name, part in column.items() if not name.endswith("timestamp")}
    length, start = integers["length"], integers["dataset_from_index"]
    _check_lengths(where, length)
    ends = np.cumsum(length)
    for name, expected in (("dataset_from_index", ends - length), ("dataset_to_index", ends)):
        wrong = np.flatnonzero(integers[name] != expected)
        if wrong.size:
            episode = int(wrong[0])
            raise ValueError(
                f"{where}: column {name} of episode {episode} is {integers[name][episode]}, the column length up to "
                f"there says {expected[episode]}"
            )
    chunk, file = integers["data/chunk_index"], integers["data/file_index"]
    videos = {
        key: VideoSpans(
            integers[f"videos/{key}/chunk_index"],
            integers[f"videos/{key}/file_index"],
            _first_frames(where, key, column[f"videos/{key}/from_timestamp"], info.fps),
        )
        for key in info.video_keys
    }
    for key, spans in videos.items():
        _warn_about_drift(where, key, spans, length)
    return Episodes(length, start, chunk, file, _first_of_group(start, chunk, file), videos)


def _read_v21(root: Path, info: Info) -> Episodes:
    path = root / "meta/episodes.jsonl"
    rows = _read_jsonl(path)[: info.episodes]
    if [row.get("episode_index") for row in rows] != list(range(info.episodes)):
        raise ValueError(f"{path}: episode_index must be 0 to {info.episodes - 1} in order; found {len(rows)} rows")
    lengths = [row.get("length") for row in rows]
    for episode, length in enumerate(lengths):
        if not isinstance(length, int) or isinstance(length, bool) or length >= 2**40:
            raise ValueError(f"{path}: length of episode {episode} must be an integer, got {length!r:.60}")
    length = np.array(lengths, dtype=np.int64)
    _check_lengths(path, length)
    start = np.cumsum(length) - length
    number = np.arange(info.episodes, dtype=np.int64)
    zeros = np.zeros_like(number)
    videos = {key: VideoSpans(zeros, number, zeros) for key in info.video_keys}
    return Episodes(length, start, zeros, number, start, videos)


def _numbers(paths: Sequence[Path], name: str, parts: list[pa.ChunkedArray]) -> np.ndarray:
    for path, part in zip(paths, parts, strict=True):
        if part.null_count or not (pa.types.is_integer(part.type) or pa.types.is_floating(part.type)):
            raise ValueError(f"{path}: column {name} must hold numbers without gaps, got {part.type}")
    return np.concatenate([part.to_numpy() for part in parts]) if parts else np.zeros(0, dtype=np.int64)


def _integers(where: Path, name: str, values: np.ndarray) -> np.ndarray:
    try:
        return converted(values, "int64")
    except OverflowError as error:
        raise ValueError(f"{where}: column {name} must hold whole numbers, got {error}") from error


def _check_lengths(where: Path, length: np.ndarray) -> None:
    if (length < 1).any():
        raise ValueError(f"{where}: column length must be positive, got {int(length.min())}")


def _first_frames(where: Path, key: str, seconds: np.ndarray, fps: int) -> np.ndarray:
    numbers = seconds.astype(np.float64) * fps
    if not np.isfinite(numbers).all() or (numbers < 0).any() or (numbers > 2**40).any():
        raise ValueError(f"{where}: column videos/{key}/from_timestamp must hold seconds from 0 on")
    return np.rint(numbers).astype(np.int64)


def _first_of_group(start: np.ndarray, chunk: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Smallest `start` among the episodes that share a file."""
    group = np.unique(np.stack([chunk, file]), axis=1, return_inverse=True)[1].reshape(-1)
    first = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, start)
    return first[group]


def _warn_about_drift(where: Path, key: str, spans: VideoSpans, length: np.ndarray) -> None:
    """`from_timestamp` is a running sum of container durations and can leave the frame grid in long files."""
    order = np.lexsort((spans.first_frame, spans.file, spans.chunk))
    new_file = np.diff(spans.chunk[order], prepend=-1).astype(bool) | np.diff(spans.file[order], prepend=-1).astype(
        bool
    )
    before = np.cumsum(length[order]) - length[order]
    expected = before - np.maximum.accumulate(np.where(new_file, before, 0))
    drift = np.abs(spans.first_frame[order] - expected)
    if drift.any():
        warnings.warn(
            f"{where}: videos/{key}/from_timestamp leaves the frame grid by up to {int(drift.max())} frames; "
            "frames are read by their time stamps",
            stacklevel=2,
        )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing")
    try:
        # Not splitlines(): a JSON string may hold U+2028 and other characters that it takes for the end of a line.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON lines ({error})") from error
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}: every line must be a JSON object, got {row!r:.60}")
    return rows
