"""Episode index of a set: where each episode's rows and video frames are, and the task texts."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from pydantic import Field, TypeAdapter

from moteur.data.lerobot.info import EPISODES_GLOB, INFO_FILE, TASKS_FILE, Info
from moteur.data.lerobot.table import cast_exactly, read_rows, read_table
from moteur.files import parse


@dataclass(frozen=True)
class VideoSpans:
    """Place of one camera's episodes: chunk and file number, and the number of the first frame in that file."""

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

    def check_rows(
        self, path: Path, row: int, columns: Mapping[str, np.ndarray], *, first: int, count: int, fps: int | None
    ) -> None:
        """Refuse rows of a data file whose episode, frame number or time stamp is not what the episode table says.

        The file has `count` rows, of which the first has the index `first` in the whole set. Time stamps are compared
        with frame numbers where `fps` is given.
        """
        index = np.arange(first + row, first + min(row + len(columns["index"]), count))
        episode = np.searchsorted(self.start, index, side="right") - 1
        frame = index - self.start[episode]
        expected: dict[str, np.ndarray] = {"index": index, "episode_index": episode, "frame_index": frame}
        wrong = {name: columns[name][: len(index)] != values for name, values in expected.items()}
        if fps is not None:
            # LeRobot finds a picture by its time, this reader by its number: half a frame apart, they would differ.
            expected["timestamp"] = frame / fps
            seconds = columns["timestamp"][: len(index)]
            wrong["timestamp"] = ~(np.abs(seconds * float(fps) - frame) < 0.5)  # noqa: PLR2004  # half a frame
        for name, places in wrong.items():
            for place in np.flatnonzero(places)[:1].tolist():
                wanted = f"{expected[name][place]} by the lengths in the episode index"
                raise ValueError(f"{path}: row {row + place}: {name}: expected {wanted}, got {columns[name][place]}")


def read_episodes(root: Path, info: Info) -> Episodes:
    """Read the episode index of either version.

    Rows beyond `info.json`'s count are ignored: they belong to an episode whose recording was cut off.
    """
    episodes = _read_v30(root, info) if info.version == "v3.0" else _read_v21(root, info)
    total = int(episodes.length.sum())
    if total != info.num_frames:
        where = f"{root / INFO_FILE}: total_frames"
        raise ValueError(f"{where}: expected {total}, the sum of the episode lengths, got {info.num_frames}")
    return episodes


@dataclass(frozen=True)
class _Task:
    task_index: Annotated[int, Field(strict=True)]
    task: str


@dataclass(frozen=True)
class _Episode:
    episode_index: Annotated[int, Field(strict=True)]
    length: Annotated[int, Field(strict=True, ge=1, lt=2**40)]


_TASKS, _EPISODES = TypeAdapter(list[_Task]), TypeAdapter(list[_Episode])


def read_tasks(root: Path, info: Info) -> Mapping[int, str]:
    """Read the task texts by their `task_index`."""
    if info.version == "v2.1":
        path = root / "meta/tasks.jsonl"
        rows = _read_jsonl(path)
    else:
        path = root / TASKS_FILE
        # LeRobot names the text column "task" or, through some versions of pandas, "__index_level_0__".
        rows = [
            {"task" if name == "__index_level_0__" else name: cell for name, cell in row.items()}
            for row in read_rows(path, promised=info.num_frames)
        ]
    tasks: dict[int, str] = {}
    for row in parse(_TASKS, rows, path):
        first = tasks.setdefault(row.task_index, row.task)
        if first != row.task:
            raise ValueError(f"{path}: task_index {row.task_index}: expected one text, got {first!r} and {row.task!r}")
    return tasks


def _read_v30(root: Path, info: Info) -> Episodes:
    paths, where = sorted(root.glob(EPISODES_GLOB)), root / "meta/episodes"
    if not paths and info.num_episodes:
        raise FileNotFoundError(f"{root / EPISODES_GLOB}: missing, but info.json says {info.num_episodes} episodes")
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    for key in info.video_keys:
        names += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    tables = [read_table(path, names, promised=info.num_episodes) for path in paths]
    column = {name: _numbers(paths, name, [table[name] for table in tables]) for name in names}
    order = np.argsort(column["episode_index"], kind="stable")[: info.num_episodes]
    if len(order) != info.num_episodes or (column["episode_index"][order] != np.arange(len(order))).any():
        found = len(column["episode_index"])
        raise ValueError(f"{where}: episode_index: expected 0 to {info.num_episodes - 1} once each, got {found} rows")
    column = {name: values[order] for name, values in column.items()}
    integers = {name: _integers(where, name, part) for name, part in column.items() if not name.endswith("timestamp")}
    length, start = integers["length"], integers["dataset_from_index"]
    if (length < 1).any():
        raise ValueError(f"{where}: length: expected at least 1, got {int(length.min())}")
    ends = np.cumsum(length)
    for name, expected in (("dataset_from_index", ends - length), ("dataset_to_index", ends)):
        for episode in np.flatnonzero(integers[name] != expected)[:1].tolist():
            wanted = f"{expected[episode]} for episode {episode} by the lengths up to there"
            raise ValueError(f"{where}: {name}: expected {wanted}, got {integers[name][episode]}")
    chunk, file = integers["data/chunk_index"], integers["data/file_index"]
    videos: dict[str, VideoSpans] = {}
    for key in info.video_keys:
        seconds = column[f"videos/{key}/from_timestamp"].astype(np.float64)
        for wrong in seconds[~((seconds >= 0) & (seconds * info.fps <= 2**40))][:1]:
            raise ValueError(f"{where}: videos/{key}/from_timestamp: expected seconds from 0 on, got {wrong}")
        first = np.rint(seconds * info.fps).astype(np.int64)
        places = integers[f"videos/{key}/chunk_index"], integers[f"videos/{key}/file_index"]
        videos[key] = VideoSpans(*places, first)
        # Time stamps are a running sum of container durations and can leave the frame grid in long files.
        drift = int(np.abs(first - (start - _first_of_group(start, *places))).max(initial=0))
        if drift:
            field = f"{where}: videos/{key}/from_timestamp"
            warnings.warn(f"{field} leaves the frame grid by up to {drift} frames, and is followed", stacklevel=2)
    return Episodes(length, start, chunk, file, _first_of_group(start, chunk, file), videos)


def _read_v21(root: Path, info: Info) -> Episodes:
    path, count = root / "meta/episodes.jsonl", info.num_episodes
    rows = parse(_EPISODES, _read_jsonl(path)[:count], path)
    if len(rows) != count or [row.episode_index for row in rows] != list(range(count)):
        raise ValueError(f"{path}: episode_index: expected 0 to {count - 1} in order, got {len(rows)} rows")
    length, number = np.array([row.length for row in rows], dtype=np.int64), np.arange(count, dtype=np.int64)
    start, zeros = np.cumsum(length) - length, np.zeros_like(number)
    videos = {key: VideoSpans(zeros, number, zeros) for key in info.video_keys}
    return Episodes(length, start, zeros, number, start, videos)


def _numbers(paths: Sequence[Path], name: str, parts: list[pa.ChunkedArray]) -> np.ndarray:
    for path, part in zip(paths, parts, strict=True):
        if part.null_count or not (pa.types.is_integer(part.type) or pa.types.is_floating(part.type)):
            raise ValueError(f"{path}: {name}: expected numbers, got {part.type}, {part.null_count} missing")
    return np.concatenate([part.to_numpy() for part in parts]) if parts else np.zeros(0, dtype=np.int64)


def _integers(where: Path, name: str, values: np.ndarray) -> np.ndarray:
    try:
        return cast_exactly(values, "int64")
    except OverflowError as error:
        raise ValueError(f"{where}: {name}: expected integers, got {error}") from error


def _first_of_group(start: np.ndarray, chunk: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Smallest `start` among the episodes that share a file."""
    group = np.unique(np.stack([chunk, file]), axis=1, return_inverse=True)[1].reshape(-1)
    first = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, start)
    return first[group]


def _read_jsonl(path: Path) -> list[Any]:
    try:
        # Not splitlines(): a JSON string may hold U+2028 and other characters that it takes for the end of a line.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON lines, got other text ({error})") from error
