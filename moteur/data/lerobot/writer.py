"""Recording a LeRobot v3.0 set, one whole episode at a time."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moteur.data.lerobot.columns import frame_table, task_table
from moteur.data.lerobot.commit import Commit, empty_folder, write_json
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.episode_buffer import EpisodeBuffer
from moteur.data.lerobot.episodes import EPISODES_GLOB, read_table
from moteur.data.lerobot.info import BOOKKEEPING, INFO_FILE, Feature, load_json, parse_info, read_info
from moteur.data.lerobot.layout import (
    DATA_PATH,
    EPISODES_PATH,
    SCALARS,
    STATS_FILE,
    TASKS_FILE,
    VIDEO_PATH,
    Place,
    described,
    following,
    new_info,
    numbered,
    prefixed,
)
from moteur.data.lerobot.lock import WriterLock
from moteur.data.lerobot.recovery import is_unborn, recorded_summaries
from moteur.data.lerobot.resume import check_continues, ordered_tasks
from moteur.data.lerobot.summary import (
    PictureHistogram,
    Summary,
    merge_summaries,
    quantiles_of,
    summarise_numbers,
    without_quantiles,
)


class SetWriter:
    """Writes a set that LeRobot reads, and that is whole at every moment.

    Each episode goes to files of its own; they are prepared aside and moved into place by renames, `info.json` last. A
    process killed at any moment therefore leaves a set that opens with every episode whose `save_episode` returned.
    What a killed writer left half done is removed when the set is opened for writing again. A set has one writer at a
    time: it is locked until `close`, or until the writer's process ends.

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

    Example:
        >>> import tempfile
        >>> features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SetWriter(folder, fps=10, features=features) as writer:
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
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.root, self.fps, self.codec, self.gop = Path(root), fps, codec, gop
        self.features = {
            key: described(key, feature, fps=fps, codec=codec, gop=gop) for key, feature in features.items()
        }
        self.episodes = self.frames = 0
        self._tasks: list[str] = []
        self._stats: dict[str, Summary] = {}
        self._pictures: dict[str, PictureHistogram] = {}
        self._scratch = self.root / ".recording/parts"
        videos = [key for key, feature in self.features.items() if feature.dtype == "video"]
        self._next: dict[str, Place] = dict.fromkeys(["data", "episodes", *videos], (0, 0))
        if resume:
            read_info(self.root)  # where there is no set, nothing is made
        elif self.root.exists() and not is_unborn(self.root, scratch=self._scratch.parent):
            raise ValueError(f"root {self.root} is not empty; pass resume=True to continue a set")
        else:
            self._info = new_info(self.features, fps=fps, robot_type=robot_type)
            parse_info(self.root / INFO_FILE, json.loads(json.dumps(self._info)))  # nothing is written that is not read
        self._lock = WriterLock(self.root, self._scratch.parent)
        try:
            if resume:
                self._info = self._continue(robot_type)
            else:
                self._begin()
            self._buffer = self._new_buffer()
        except BaseException:
            self._lock.release()
            raise

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Add one frame to the current episode.

        Args:
            frame: A value for every feature: arrays or CPU tensors of the declared shape, pictures as unsigned bytes
                (height, width, 3), texts as strings.
            task: What the robot is asked to do.

        Raises:
            ValueError: A feature is missing, unknown, of another shape or type, not finite, or outside what its type
                can hold; the key is named, and the frame leaves no trace.
            OSError: A picture could not be encoded or written, as on a full disk; the episode can only be discarded.
        """
        self._buffer.add(frame, task)

    def save_episode(self) -> None:
        """Close the current episode and make it part of the set.

        When it fails, the set stays as it was. It can be tried again, unless a video is what failed.

        Raises:
            ValueError: The episode has no frames, a picture could not be encoded, or the writer is closed.
            OSError: A file could not be written, as on a full disk.
        """
        self._check_open()
        buffer, length = self._buffer, len(self._buffer)
        if not length:
            raise ValueError("the episode has no frames; add some before saving it")
        tasks = list(dict.fromkeys(self._tasks + buffer.tasks))
        columns = buffer.columns | self._bookkeeping(tasks)
        scalars = {key: summarise_numbers(np.stack(columns[key])) for key in BOOKKEEPING}
        summaries = buffer.summaries() | scalars
        stats = {
            key: merge_summaries([self._stats[key], summary]) if key in self._stats else summary
            for key, summary in summaries.items()
        }
        info = self._info | {
            "total_episodes": self.episodes + 1,
            "total_frames": self.frames + length,
            "total_tasks": len(tasks),
            "splits": {"train": f"0:{self.episodes + 1}"},
        }
        # The order below is the order of the renames. A reader stops at what info.json counts, so everything before it
        # may be there too early. The row of the episode index comes before the data it points to, because LeRobot's
        # reader takes the number of frames from the data files.
        with Commit(self.root, self._scratch) as commit:
            pq.write_table(task_table(tasks), commit.file(TASKS_FILE))
            for key, path in buffer.finish().items():
                commit.adopt(path, VIDEO_PATH.format(video_key=key, **numbered(self._next[key])))
            row = self._episode_row(list(dict.fromkeys(buffer.tasks)), length, summaries)
            pq.write_table(
                pa.Table.from_pylist([row]), commit.file(EPISODES_PATH.format(**numbered(self._next["episodes"])))
            )
            table = frame_table(columns, self.features | SCALARS)
            pq.write_table(table, commit.file(DATA_PATH.format(**numbered(self._next["data"]))))
            write_json(commit.file(STATS_FILE), without_quantiles(stats))
            write_json(commit.file(INFO_FILE), info)
        self._tasks, self._stats, self._info = tasks, stats, info
        for key, histogram in buffer.histograms.items():
            self._pictures.setdefault(key, PictureHistogram()).merge(histogram)
        self._next = {kind: following(place) for kind, place in self._next.items()}
        self.episodes, self.frames = self.episodes + 1, self.frames + length
        self._buffer = self._new_buffer()

    def discard_episode(self) -> None:
        """Forget the frames added since the last saved episode."""
        self._check_open()
        self._buffer.discard()
        self._buffer = self._new_buffer()

    def close(self) -> None:
        """Drop an unsaved episode and complete `stats.json` with quantiles over the whole set.

        Quantiles of numbers are exact, from one pass over the stored columns. Quantiles of pictures need the pixel
        counts of every episode, which only the writer that encoded them has: after `resume` they are left out. A writer
        that is closed stays closed; where closing fails, it can be tried again.
        """
        if not self._lock.held:
            return
        self._buffer.discard()
        if self.episodes:
            reader = LeRobotSet(self.root)
            stats = without_quantiles(self._stats)
            for key in stats:
                if key in self._pictures:
                    if self._pictures[key].frames == self.frames:
                        stats[key] = self._pictures[key].summarise()
                elif key in reader.keys and reader.info.features[key].is_numeric:
                    whole = np.concatenate([reader.column(key, episode) for episode in range(self.episodes)])
                    stats[key] |= quantiles_of(whole)
            with Commit(self.root, self._scratch) as commit:
                write_json(commit.file(STATS_FILE), stats)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._lock.release()

    def __enter__(self) -> "SetWriter":  # noqa: PYI034  # the run-time shape checks cannot resolve Self here
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
            self._lock.release()

    def _check_open(self) -> None:
        if not self._lock.held:
            raise ValueError("the writer is closed; open the set again with resume=True")

    def _begin(self) -> None:
        if (self.root / INFO_FILE).exists():
            raise ValueError(f"root {self.root} is not empty; another writer has made a set in it")
        with Commit(self.root, self._scratch) as commit:
            pq.write_table(task_table([]), commit.file(TASKS_FILE))
            write_json(commit.file(INFO_FILE), self._info)

    def _new_buffer(self) -> EpisodeBuffer:
        scratch = empty_folder(self._scratch)
        return EpisodeBuffer(self.features, scratch=scratch, fps=self.fps, codec=self.codec, gop=self.gop)

    def _bookkeeping(self, tasks: list[str]) -> dict[str, list[Any]]:
        frames = np.arange(len(self._buffer))
        numbers = {
            "timestamp": frames / self.fps,
            "frame_index": frames,
            "episode_index": np.full_like(frames, self.episodes),
            "index": frames + self.frames,
            "task_index": np.array([tasks.index(task) for task in self._buffer.tasks]),
        }
        return {key: list(values.astype(SCALARS[key].dtype)) for key, values in numbers.items()}

    def _episode_row(self, tasks: list[str], length: int, summaries: Mapping[str, Summary]) -> dict[str, Any]:
        row: dict[str, Any] = {"episode_index": self.episodes, "tasks": tasks, "length": length}
        row |= prefixed("data", numbered(self._next["data"]))
        row |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + length}
        for key, feature in self.features.items():
            if feature.dtype == "video":
                span = {"from_timestamp": 0.0, "to_timestamp": length / self.fps}
                row |= prefixed(f"videos/{key}", numbered(self._next[key]) | span)
        for key, summary in summaries.items():
            row |= prefixed(f"stats/{key}", summary)
        return row | prefixed("meta/episodes", numbered(self._next["episodes"]))

    def _continue(self, robot_type: str | None) -> dict[str, Any]:
        reader = LeRobotSet(self.root)
        check_continues(self.root, reader.info, fps=self.fps, features=self.features, robot_type=robot_type)
        self.episodes, self.frames = len(reader.index), len(reader)
        self._tasks = ordered_tasks(self.root, reader.tasks)
        index = reader.index
        places = {"data": (index.chunk, index.file)}
        places |= {key: (spans.chunk, spans.file) for key, spans in index.videos.items()}
        for kind, (chunk, file) in places.items():
            if self.episodes:
                self._next[kind] = following(max(zip(chunk.tolist(), file.tolist(), strict=True)))
        self._drop_leftovers()
        self._stats = recorded_summaries(self.root, self.episodes)
        return load_json(self.root / INFO_FILE)

    def _drop_leftovers(self) -> None:
        """Remove the files of an episode that a killed writer had begun to move into place."""
        (self.root / DATA_PATH.format(**numbered(self._next["data"]))).unlink(missing_ok=True)
        for path in sorted(self.root.glob(EPISODES_GLOB)):
            if min(read_table(path, ["episode_index"])["episode_index"].to_pylist(), default=-1) >= self.episodes:
                path.unlink()
            else:
                chunk, file = (int(part.rsplit("-", 1)[1]) for part in (path.parent.name, path.stem))
                self._next["episodes"] = following((chunk, file))
        for key in self.features:
            path = self.root / VIDEO_PATH.format(video_key=key, **numbered(self._next.get(key, (0, 0))))
            path.unlink(missing_ok=True)
