"""Progress of a recording, and how it is recovered from a set on disk, also after an interrupted recording."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import (
    BOOKKEEPING,
    CHUNKS_SIZE,
    DATA_PATH,
    EPISODES_GLOB,
    INFO_FILE,
    TASKS_FILE,
    VIDEO_PATH,
    Feature,
    Info,
)
from moteur.data.lerobot.stats import Summary, merge_summaries
from moteur.data.lerobot.table import read_rows, read_table
from moteur.files import read_json

FileNumber = tuple[int, int]  # chunk number, number within the chunk
SCALARS = {key: Feature("float32" if key == "timestamp" else "int64") for key in BOOKKEEPING}
_PARTS = ("min", "max", "mean", "std", "count")


@dataclass
class Progress:
    """How far a recording is.

    Attributes:
        info: Contents of `info.json`.
        next_files: Number of the next file of each kind: `"data"`, `"episodes"`, and each video.
        tasks: Task texts by number.
        stats: Statistics of each column over the whole set, without quantiles.
    """

    info: dict[str, Any]
    next_files: dict[str, FileNumber]
    tasks: list[str] = field(default_factory=list)
    stats: dict[str, Summary] = field(default_factory=dict)


def following(number: FileNumber) -> FileNumber:
    """Return the number after this one; a full chunk is followed by the first file of the next."""
    chunk, file = number
    return (chunk + 1, 0) if file + 1 >= CHUNKS_SIZE else (chunk, file + 1)


def numbered(number: FileNumber) -> dict[str, int]:
    """Return a file's number under the names that path templates and episode columns use."""
    return {"chunk_index": number[0], "file_index": number[1]}


def is_unfinished_start(root: Path, *, scratch: Path) -> bool:
    """Whether a folder holds nothing but the beginnings of a set that was interrupted before `info.json` arrived."""
    files = {path for path in root.rglob("*") if path.is_file() and scratch not in path.parents}
    return files <= {root / TASKS_FILE} and (not files or scratch.exists())


def recover(root: Path, ours: Info) -> Progress:
    """Find out how far a set was recorded, and remove what an interrupted recording left half done.

    A set that differs from `ours`, what will be recorded, is refused; names are compared where they are given.
    """
    reader = LeRobotSet(root)
    _check_continues(root / INFO_FILE, reader.info, ours)
    tasks = _ordered_tasks(root, reader.tasks)
    index = reader.index
    next_files: dict[str, FileNumber] = dict.fromkeys(["data", "episodes", *index.videos], (0, 0))
    if len(index):
        places = {"data": (index.chunk, index.file)}
        places |= {key: (spans.chunk, spans.file) for key, spans in index.videos.items()}
        for kind, (chunk, file) in places.items():
            next_files[kind] = following(max(zip(chunk.tolist(), file.tolist(), strict=True)))
    _remove_leftovers(root, len(index), next_files)
    info = read_json(root / INFO_FILE) | {"total_episodes": len(index), "total_frames": len(reader)}
    return Progress(info, next_files, tasks, _recorded_stats(root, len(index)))


def _check_continues(where: Path, stored: Info, ours: Info) -> None:
    if stored.version != ours.version:
        raise ValueError(f"{where}: codebase_version: expected 'v3.0' to continue the set, got {stored.version!r}")
    known, given = set(stored.features), set(ours.features)
    if known != given:
        found = f"{sorted(known - given)} missing and {sorted(given - known)} unknown"
        raise ValueError(f"features: expected those of {where}, got {found}")
    names = ["fps", "chunks_size", "data_path"]
    names += ["video_path"] if stored.video_keys else []
    names += ["robot_type"] if ours.robot_type is not None else []
    pairs: dict[str, tuple[object, object]] = {name: (getattr(stored, name), getattr(ours, name)) for name in names}
    for key, feature in ours.features.items():
        theirs = stored.features[key]
        values: dict[str, tuple[object, object]]
        values = {"dtype": (theirs.dtype, feature.dtype), "shape": (theirs.shape, feature.shape)}
        if feature.names is not None and not feature.is_visual:  # a picture's axes have had several names
            values["names"] = (theirs.labels, feature.labels)
        values |= {name: (theirs.video[name], value) for name, value in feature.video.items() if name in theirs.video}
        pairs |= {f"features[{key!r}].{name}": pair for name, pair in values.items()}
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise ValueError(f"{where}: {name}: expected {expected!r} to continue the set, got {found!r}")


def _ordered_tasks(root: Path, tasks: Mapping[int, str]) -> list[str]:
    """Task texts by number. With gaps or equal texts, numbers in the data would change their meaning."""
    if sorted(tasks) != list(range(len(tasks))) or len(set(tasks.values())) != len(tasks):
        found = f"{dict(tasks)!r:.200}"
        raise ValueError(f"{root / TASKS_FILE}: expected task_index 0 to {len(tasks) - 1} and texts once, got {found}")
    return [tasks[number] for number in range(len(tasks))]


def _remove_leftovers(root: Path, num_episodes: int, next_files: dict[str, FileNumber]) -> None:
    """Remove the files of an episode that an interrupted writer had begun to move into place."""
    for path in sorted(root.glob(EPISODES_GLOB)):
        if min(read_table(path, ["episode_index"])["episode_index"].to_pylist(), default=-1) >= num_episodes:
            path.unlink()
        else:
            chunk, file = (int(part.rsplit("-", 1)[1]) for part in (path.parent.name, path.stem))
            next_files["episodes"] = following((chunk, file))
    for kind, number in next_files.items():
        if kind != "episodes":
            template = DATA_PATH if kind == "data" else VIDEO_PATH
            (root / template.format(video_key=kind, **numbered(number))).unlink(missing_ok=True)


def _recorded_stats(root: Path, num_episodes: int) -> dict[str, Summary]:
    """Statistics of the first episodes, merged from those kept beside each.

    Not read from `stats.json`, which is renamed into place before `info.json` and may count an episode that is not
    part of the set. A column that some episode has no statistics of is left out.
    """
    found: dict[str, list[Summary]] = defaultdict(list)
    for path in sorted(root.glob(EPISODES_GLOB)):
        for row in [row for row in read_rows(path) if row["episode_index"] < num_episodes]:
            for key in [name[len("stats/") : -len("/mean")] for name in row if re.fullmatch("stats/.*/mean", name)]:
                summary = {part: row.get(f"stats/{key}/{part}") for part in _PARTS}
                if None not in summary.values():
                    _check_summary(f"{path}: stats/{key} of episode {row['episode_index']}", summary, found[key][:1])
                    found[key].append(summary)
    return {key: merge_summaries(parts) for key, parts in found.items() if len(parts) == num_episodes}


def _check_summary(where: str, summary: Summary, before: Sequence[Summary]) -> None:
    try:
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in summary.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected numbers, got {summary!r:.200}") from error
    shapes = {array.shape for name, array in arrays.items() if name != "count"}
    shapes |= {np.shape(other["mean"]) for other in before}
    if len(shapes) > 1 or arrays["count"].shape != (1,) or not arrays["count"][0] >= 1:
        raise ValueError(f"{where}: expected one shape and a count of at least 1, got {summary!r:.200}")
