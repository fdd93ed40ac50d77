"""Recording a LeRobot v3.0 set, one complete episode at a time."""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import BaseFileLock, FileLock, Timeout

from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.encode import CODEC_NAMES, EpisodeBuffer, check_encoding
from moteur.data.lerobot.info import (
    BOOKKEEPING,
    CHUNKS_SIZE,
    DATA_PATH,
    EPISODES_PATH,
    INFO_FILE,
    INFO_SCHEMA,
    STATS_FILE,
    TASKS_FILE,
    VIDEO_PATH,
    Feature,
    Info,
)
from moteur.data.lerobot.resume import SCALARS, Progress, following, is_unfinished_start, numbered, recover
from moteur.data.lerobot.stats import (
    PictureHistogram,
    Summary,
    merge_summaries,
    summarise_numbers,
)
from moteur.data.lerobot.table import frame_table, task_table
from moteur.files import parse, to_disk


class LeRobotWriter:
    """Writer of a LeRobot v3.0 set, which stays readable at every moment.

    Each episode goes to files of its own; they are prepared aside and moved into place by renames, `info.json` last. A
    process killed at any moment, or a power failure, therefore leaves a set that opens with every episode whose
    `save_episode` returned. What a killed writer left half done is removed when the set is opened for writing again. A
    set has one writer at a time: it is locked until `close`, or until the writer's process ends.

    Args:
        root: Folder of the set: new or empty, or an existing v3.0 set with `resume`.
        fps: Frames per second.
        features: The columns to record, without LeRobot's bookkeeping columns; pictures are (height, width, 3).
        robot_type: The robot's name, by which a robot schema can be found later.
        resume: Continue an existing set: `fps`, `features` and, where given, `robot_type` must be its own, and its
            files must lie where this writer puts them.
        codec: `"libsvtav1"` (LeRobot's default) or `"libx264"`.
        gop: Frames from one key frame to the next.

    Raises:
        ValueError: The folder is not empty, another writer has it open, something differs from the set being continued,
            or a feature cannot be stored.
        OSError: A file could not be made, or the folder's file system knows no locks.

    Examples:
        >>> import tempfile
        >>> features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with LeRobotWriter(folder, fps=10, features=features) as writer:
        ...         for step in range(3):
        ...             writer.add({"observation.state": [step, 0.0], "action": [step, 1.0]}, task="count")
        ...         writer.save_episode()
        ...     len(LeRobotSet(folder))
        3
    """

    def __init__(
        self,
        root: Path | str,
        *,
        fps: int,
        features: Mapping[str, Feature],
        robot_type: str | None = None,
        resume: bool = False,
        codec: str = "libsvtav1",
        gop: int = 2,
    ) -> None:
        counts: dict[str, object] = {"fps": fps, "gop": gop}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        self.root, self.fps, self.codec, self.gop = Path(root), fps, codec, gop
        self._scratch = self.root / ".recording/parts"
        if resume:
            Info.load(self.root)  # where there is no set, nothing is made
        elif self.root.exists() and not is_unfinished_start(self.root, scratch=self._scratch.parent):
            raise ValueError(f"root: expected an empty folder (or resume=True to continue a set), got {self.root}")
        self.features = {
            key: _described(key, feature, fps=fps, codec=codec, gop=gop) for key, feature in features.items()
        }
        info = _new_info(self.features, fps=fps, robot_type=robot_type)
        # Nothing is written that could not be read.
        ours = parse(INFO_SCHEMA, json.loads(json.dumps(info)), self.root / INFO_FILE)
        self._videos = [key for key, feature in self.features.items() if feature.dtype == "video"]
        self._pictures: dict[str, PictureHistogram] = {}
        self._is_open, self._lock = True, _locked(self.root, self._scratch.parent)
        try:
            self._progress = recover(self.root, ours) if resume else self._begun(info)
            self._buffer = self._new_buffer()
        except BaseException:
            self._release()
            raise

    def __repr__(self) -> str:
        cameras = [key for key, feature in self.features.items() if feature.is_visual]
        return (
            f"LeRobotWriter({str(self.root)!r}, robot_type={self._progress.info['robot_type']!r}, fps={self.fps}, "
            f"num_episodes={self.num_episodes}, num_frames={self.num_frames}, cameras={cameras})"
        )

    @property
    def num_episodes(self) -> int:
        """Number of saved episodes."""
        return self._progress.info["total_episodes"]

    @property
    def num_frames(self) -> int:
        """Number of frames in the saved episodes."""
        return self._progress.info["total_frames"]

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Add one frame to the current episode.

        Args:
            frame: A value for every feature: arrays or CPU tensors of the declared shape, pictures as unsigned bytes
                (height, width, 3), texts as strings.
            task: What the robot is asked to do.

        Raises:
            ValueError: A value is not as its feature says; the key is named, and the frame leaves no trace.
            OSError: A picture could not be encoded or written, as on a full disk; the episode can only be discarded.
        """
        self._check_open()
        self._buffer.add(frame, task)

    def save_episode(self) -> None:
        """Close the current episode and make it part of the set.

        When it fails, the set stays as it was. It can be tried again, unless a video is what failed.

        Raises:
            ValueError: The episode has no frames, a picture could not be encoded, or the writer is closed.
            OSError: A file could not be written, as on a full disk.
        """
        self._check_open()
        before, buffer, length = self._progress, self._buffer, len(self._buffer)
        if not length:
            raise ValueError("episode: expected at least one frame, got none; add some before saving it")
        tasks = list(dict.fromkeys(before.tasks + buffer.tasks))
        columns = buffer.columns | self._bookkeeping(tasks)
        summaries = buffer.summaries() | {key: summarise_numbers(np.stack(columns[key])) for key in BOOKKEEPING}
        after = Progress(
            info=before.info
            | {
                "total_episodes": self.num_episodes + 1,
                "total_frames": self.num_frames + length,
                "total_tasks": len(tasks),
                "splits": {"train": f"0:{self.num_episodes + 1}"},
            },
            next_files={kind: following(number) for kind, number in before.next_files.items()},
            tasks=tasks,
            stats={
                key: merge_summaries([before.stats[key], summary] if key in before.stats else [summary])
                for key, summary in summaries.items()
            },
        )
        numbers = {kind: numbered(number) for kind, number in before.next_files.items()}
        # The order below is the order of the renames. A reader stops at what info.json counts, so everything before it
        # may be there too early. The row of the episode index comes before the data it points to, because LeRobot's
        # reader takes the number of frames from the data files.
        row = self._episode_row(list(dict.fromkeys(buffer.tasks)), length, numbers, summaries)
        videos = {VIDEO_PATH.format(video_key=key, **numbers[key]): path for key, path in buffer.finish().items()}
        self._commit(
            {TASKS_FILE: task_table(tasks)}
            | videos
            | {
                EPISODES_PATH.format(**numbers["episodes"]): pa.Table.from_pylist([row]),
                DATA_PATH.format(**numbers["data"]): frame_table(columns, self.features | SCALARS),
                STATS_FILE: after.stats,
                INFO_FILE: after.info,
            }
        )
        self._progress = after
        for key, histogram in buffer.histograms.items():
            self._pictures.setdefault(key, PictureHistogram()).merge(histogram)
        self._buffer = self._new_buffer()

    def discard_episode(self) -> None:
        """Forget the frames added since the last saved episode."""
        self._check_open()
        self._buffer.discard()
        self._buffer = self._new_buffer()

    def close(self) -> None:
        """Drop an unsaved episode and complete `stats.json` with quantiles over the whole set.

        Statistics of numbers are taken anew, in one pass over the stored columns. Quantiles of pictures need the pixel
        counts of every episode, which only the writer that encoded them has: after `resume` they are left out. A writer
        that is closed stays closed; where closing fails, it can be tried again.
        """
        if not self._lock.is_locked:
            return
        self._is_open = False
        self._buffer.discard()
        if self.num_episodes:
            reader = LeRobotSet(self.root)
            stats = dict(self._progress.stats)
            for key in self._progress.stats:
                if key in self._pictures:
                    if self._pictures[key].num_frames == self.num_frames:
                        stats[key] = self._pictures[key].summarise()
                elif key in reader.keys and reader.info.features[key].is_numeric:
                    columns = [reader.column(key, episode) for episode in range(self.num_episodes)]
                    stats[key] = summarise_numbers(np.concatenate(columns))
            self._commit({STATS_FILE: stats})
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._release()

    def __enter__(self) -> "LeRobotWriter":  # noqa: PYI034  # the run-time shape checks cannot resolve Self here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (OSError, ValueError) as later:
            if error is None:
                raise
            error.add_note(f"closing the set failed as well: {later!r}")  # what came first is what went wrong
        finally:
            self._release()

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError("writer: expected an open one, got one that is closed; open the set with resume=True")

    def _release(self) -> None:
        """Remove the lock file, and its folder if nothing else is in it, and let the next writer in."""
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: what a killed writer left, or the next writer's lock
                self._scratch.parent.rmdir()
            self._lock.release()

    def _begun(self, info: dict[str, Any]) -> Progress:
        if (self.root / INFO_FILE).exists():
            raise ValueError(f"root: expected an empty folder, got {self.root}, in which another writer has made a set")
        self._commit({TASKS_FILE: task_table([]), INFO_FILE: info})
        to_disk(self.root.parent)
        return Progress(info, dict.fromkeys(["data", "episodes", *self._videos], (0, 0)))

    def _commit(self, contents: Mapping[str, pa.Table | dict[str, Any] | Path]) -> None:
        """Put tables, JSON files and finished videos into place, in this order, once all of them are written.

        Each rename is atomic. The sequence as a whole is made atomic by its last file: readers believe nothing that the
        last file does not mention. It is renamed when all before it, names and contents, have reached the disk.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        moves: list[tuple[Path, Path]] = []
        for target, content in contents.items():
            source = content if isinstance(content, Path) else self._scratch / f"part-{len(moves)}"
            if isinstance(content, dict):  # formatted as LeRobot does
                source.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
            elif not isinstance(content, Path):
                pq.write_table(content, source, write_page_checksum=True)
            moves.append((source, self.root / target))
        for source, _ in moves:
            if source.exists():  # else it was moved by an earlier attempt that failed further on
                to_disk(source)
        for part in (moves[:-1], moves[-1:]):
            for source, target in part:
                if source.exists() or not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
            folders = {folder for _, target in part for folder in target.parents if folder.is_relative_to(self.root)}
            for folder in folders:
                to_disk(folder)

    def _new_buffer(self) -> EpisodeBuffer:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        return EpisodeBuffer(self.features, scratch=self._scratch, fps=self.fps, codec=self.codec, gop=self.gop)

    def _bookkeeping(self, tasks: list[str]) -> dict[str, list[Any]]:
        frame = np.arange(len(self._buffer))
        numbers = {
            "timestamp": frame / self.fps,
            "frame_index": frame,
            "episode_index": np.full_like(frame, self.num_episodes),
            "index": frame + self.num_frames,
            "task_index": np.array([tasks.index(task) for task in self._buffer.tasks]),
        }
        return {key: list(values.astype(SCALARS[key].dtype)) for key, values in numbers.items()}

    def _episode_row(
        self, tasks: list[str], length: int, numbers: Mapping[str, dict[str, int]], summaries: Mapping[str, Summary]
    ) -> dict[str, Any]:
        span = {"from_timestamp": 0.0, "to_timestamp": length / self.fps}
        groups: dict[str, Mapping[str, Any]] = {"data": numbers["data"]}
        groups |= {f"videos/{key}": number | span for key, number in numbers.items() if key in self._videos}
        groups |= {f"stats/{key}": summary for key, summary in summaries.items()}
        groups["meta/episodes"] = numbers["episodes"]
        row: dict[str, Any] = {"episode_index": self.num_episodes, "tasks": tasks, "length": length}
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + length}
        return row | {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def _locked(root: Path, folder: Path) -> BaseFileLock:
    """Lock a set for writing. The kernel lifts the lock when the process ends, however it ends."""
    lock = FileLock(folder / "lock", timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"root: expected one writer at a time, got {root}, which another LeRobotWriter has open"
        ) from error
    except OSError as error:
        error.filename = lock.lock_file
        raise
    return lock


def _new_info(features: Mapping[str, Feature], *, fps: int, robot_type: str | None) -> dict[str, Any]:
    """`info.json` of a set without episodes."""

    def entry(feature: Feature) -> dict[str, Any]:
        plain = {"dtype": feature.dtype, "shape": list(feature.shape), "names": feature.names}
        return plain | ({"info": dict(feature.video)} if feature.video else {})

    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if any(feature.dtype == "video" for feature in features.values()) else None,
        "features": {key: entry(feature) for key, feature in (dict(features) | SCALARS).items()},
    }


def _described(key: str, feature: Feature, *, fps: int, codec: str, gop: int) -> Feature:
    """Return the feature with the facts about its pictures that `info.json` carries; refuse what cannot be recorded."""
    where, of_picture = f"features[{key!r}]", feature.dtype in ("image", "video")
    if key in BOOKKEEPING:
        raise ValueError(f"features: expected names other than LeRobot's own {BOOKKEEPING}, got {key!r}")
    if feature.dtype == "language":
        raise ValueError(f"{where}.dtype: expected numbers, texts or pictures, got 'language'")
    if (feature.dtype == "string" and feature.shape != (1,)) or (of_picture and feature.shape[2:] != (3,)):
        expected = "(height, width, 3)" if of_picture else "(1,)"
        raise ValueError(f"{where}.shape: expected {expected} for {feature.dtype}, got {feature.shape}")
    if not of_picture:
        return feature
    named = replace(feature, names=["height", "width", "channels"])
    if feature.dtype == "image":
        return named
    height, width, channels = feature.shape
    try:
        check_encoding(fps=fps, height=height, width=width, codec=codec, gop=gop)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    size = {"video.height": height, "video.width": width, "video.channels": channels}
    kind = {"video.codec": CODEC_NAMES.get(codec), "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
    return replace(named, video=size | kind | {"video.fps": fps, "video.g": gop, "has_audio": False})
