"""A LeRobot set as a map-style dataset: one item per frame, with windows of frames and actions around it."""

import resource
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from moteur.data.lerobot.cache import BoundedCache
from moteur.data.lerobot.episodes import read_episodes, read_tasks
from moteur.data.lerobot.info import BOOKKEEPING, read_info
from moteur.data.lerobot.modality import read_modality
from moteur.data.lerobot.rows import ExpectedRows
from moteur.data.lerobot.table import TableFile
from moteur.data.lerobot.video import Backend, Decoder, available_backends, open_video

Item = dict[str, Any]
_TABLE_BYTES = 256 * 2**20
_OPEN_VIDEOS = 256  # some 0.9 MiB each at 224x224, 1.9 MiB at 512x512


class LeRobotSet:
    """Reads a LeRobot set of format v3.0 or v2.1 from a local folder.

    An item is a dictionary keyed like LeRobot's own: numeric columns as tensors, pictures as unsigned bytes
    (channel, height, width), `task` as text. A key with offsets gets a leading time axis; offsets that leave the
    episode are clamped to its first or last frame and marked in `<key>_is_pad`. Unlike LeRobot, a window of one frame
    keeps its time axis, and pictures are always bytes: convert them on the device.

    Nothing is opened before it is needed, and what is open is bounded and private to each process, so a set can be
    handed to forked and spawned loader workers alike.

    Args:
        root: The set's folder (see `fetch` for the Hub).
        offsets: Key to frame offsets, such as `{"action": range(50), "observation.images.top": (-15, 0, 15)}`.
        keys: Columns to read; all but language annotations if not given.
        episodes: Numbers of the episodes to use, in this order; all if not given.
        backend: Video decoder, `"pyav"` or `"torchcodec"`; the first that is available if not given.
        videos: Open decoders, at most as many as the cache's budget; share one among several sets. If not given, 256
            for this set alone, or a quarter of the files that the process may have open where that is less.
        tables: Decoded row groups, at most as many bytes as the cache's budget; share one among several sets.

    Raises:
        FileNotFoundError: A file of the set is missing.
        ValueError: The set is damaged or of another version, or an argument does not fit it; file and field are named.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        offsets: Mapping[str, Sequence[int]] | None = None,
        keys: Collection[str] | None = None,
        episodes: Sequence[int] | None = None,
        backend: Backend | None = None,
        videos: BoundedCache | None = None,
        tables: BoundedCache | None = None,
    ) -> None:
        self.root = Path(root)
        self.info = read_info(self.root)
        self.index = read_episodes(self.root, self.info)
        self.tasks = read_tasks(self.root, self.info)
        self.modality = read_modality(self.root, self.info)
        if backend not in (None, *available_backends()):
            raise ValueError(f"backend must be one of {available_backends()} here, got {backend!r}")
        self.backend: Backend | None = backend
        self.keys = self._chosen_keys(keys)
        self.offsets = {key: self._checked_offsets(key, steps) for key, steps in (offsets or {}).items()}
        self.episodes = self._chosen_episodes(episodes)
        self._ends = np.cumsum(self.index.length[self.episodes])
        self._videos = BoundedCache(_open_videos()) if videos is None else videos
        self._tables = BoundedCache(_TABLE_BYTES) if tables is None else tables
        self._files: dict[tuple[int, int], TableFile] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Item:
        episode, frame = self.locate(position)
        length = int(self.index.length[episode])
        file, first_row = self._table(episode)
        item: Item = {}
        for key in self.keys:
            steps = self.offsets.get(key)
            wanted = np.array([frame]) if steps is None else np.minimum(np.maximum(steps + frame, 0), length - 1)
            value = self._read(key, episode, file, first_row, wanted)
            item[key] = value[0] if steps is None else value
            if steps is not None:
                item[f"{key}_is_pad"] = torch.from_numpy(wanted != steps + frame)
        number = int(item["task_index"])
        if number not in self.tasks:
            raise ValueError(f"{file.path}: task_index {number} is not in the task file")
        return item | {"task": self.tasks[number]}

    def locate(self, position: int) -> tuple[int, int]:
        """Return the episode number and the frame within it for a position of this dataset.

        Raises:
            IndexError: The position is outside the dataset.
        """
        size = len(self)
        if not -size <= position < size:
            raise IndexError(f"position {position} is outside a dataset of {size} frames")
        position %= size
        slot = int(np.searchsorted(self._ends, position, side="right"))
        episode = self.episodes[slot]
        return episode, position - int(self._ends[slot]) + int(self.index.length[episode])

    def column(self, key: str, episode: int) -> np.ndarray:
        """Return a numeric column of one whole episode, frame by frame.

        Raises:
            ValueError: The key is not one of the numeric columns that are read, or there is no such episode.
        """
        self._check_episode(episode)
        if key not in self.keys or not self.info.features[key].is_numeric:
            raise ValueError(f"key must be one of the numeric columns that are read, got {key!r}")
        file, first_row = self._table(episode)
        return file.numbers(key, np.arange(first_row, first_row + int(self.index.length[episode])))

    def frames(self, key: str, episode: int, numbers: Sequence[int]) -> UInt8[Tensor, "frame 3 height width"]:
        """Decode frames of one camera by their number within the episode.

        Raises:
            ValueError: The key is no camera, a frame lies outside the episode, or the file is damaged or holds fewer
                frames than the index says.
            FileNotFoundError: The video file is missing.
        """
        self._check_episode(episode)
        if key not in self.index.videos:
            raise ValueError(f"key must be one of the videos {list(self.index.videos)}, got {key!r}")
        length = int(self.index.length[episode])
        if any(not 0 <= number < length for number in numbers):
            raise ValueError(f"numbers must lie in the {length} frames of episode {episode}, got {list(numbers)!r:.80}")
        spans = self.index.videos[key]
        name = (str(self.root), key, int(spans.chunk[episode]), int(spans.file[episode]), self.backend)
        decoder = self._videos.get(name, lambda: self._open_video(self._video_path(key, episode), key, episode))
        first = int(spans.first_frame[episode])
        pictures = decoder.frames([first + int(number) for number in numbers])
        if tuple(pictures.shape[-2:]) != self.info.features[key].height_and_width:
            expected, found = self.info.features[key].height_and_width, tuple(pictures.shape[-2:])
            raise ValueError(f"{self._video_path(key, episode)}: pictures are {found}, info.json says {expected}")
        return pictures

    def close(self) -> None:
        """Close the videos that this process has open."""
        self._videos.clear()
        self._tables.clear()

    def _read(self, key: str, episode: int, file: TableFile, first_row: int, frames: np.ndarray) -> Any:  # noqa: ANN401
        feature = self.info.features[key]
        if feature.dtype == "video":
            return self.frames(key, episode, frames.tolist())
        if feature.dtype == "image":
            return file.pictures(key, frames + first_row)
        if feature.dtype == "string":
            return file.texts(key, frames + first_row)
        return torch.from_numpy(file.numbers(key, frames + first_row))

    def _table(self, episode: int) -> tuple[TableFile, int]:
        name = (int(self.index.chunk[episode]), int(self.index.file[episode]))
        if name not in self._files:
            chunk = int(self.index.file[episode]) // self.info.chunks_size
            path = self.info.data_path.format(
                chunk_index=name[0], file_index=name[1], episode_index=name[1], episode_chunk=chunk
            )
            features = {key: self.info.features[key] for key in self.keys if self.info.features[key].dtype != "video"}
            same = (self.index.chunk == name[0]) & (self.index.file == name[1])
            rows = ExpectedRows(
                self.index,
                first=int(self.index.file_start[episode]),
                count=int(self.index.length[same].sum()),
                fps=self.info.fps if self.info.video_keys else None,
            )
            file = TableFile(self.root / path, features=features, cache=self._tables, rows=rows.count, check=rows.check)
            rows.check_surplus(file, allowed=self.info.version == "v3.0")
            self._files[name] = file
        return self._files[name], int(self.index.start[episode] - self.index.file_start[episode])

    def _video_path(self, key: str, episode: int) -> Path:
        spans = self.index.videos[key]
        template = self.info.video_path or ""
        path = template.format(
            video_key=key,
            chunk_index=int(spans.chunk[episode]),
            file_index=int(spans.file[episode]),
            episode_index=episode,
            episode_chunk=episode // self.info.chunks_size,
        )
        return self.root / path

    def _open_video(self, path: Path, key: str, episode: int) -> Decoder:
        if self.info.features[key].is_depth:
            raise ValueError(f"{path}: {key} holds depth, which is not read as colour; leave it out of keys")
        decoder = open_video(path, fps=self.info.fps, backend=self.backend)
        spans = self.index.videos[key]
        chunk, file = spans.chunk[episode], spans.file[episode]
        expected = int((spans.first_frame + self.index.length)[(spans.chunk == chunk) & (spans.file == file)].max())
        # The last v3.0 file may hold more than the index knows: an episode whose recording was cut off.
        last = not ((spans.chunk > chunk) | ((spans.chunk == chunk) & (spans.file > file))).any()
        surplus = decoder.frame_count > expected and not (last and self.info.version == "v3.0")
        if decoder.frame_count and (decoder.frame_count < expected or surplus):
            decoder.close()
            raise ValueError(f"{path}: holds {decoder.frame_count} frames, the episode index expects {expected}")
        return decoder

    def _check_episode(self, episode: int) -> None:
        if not 0 <= episode < len(self.index):
            raise ValueError(f"episode must be one of the {len(self.index)} of {self.root}, got {episode}")

    def _chosen_keys(self, keys: Collection[str] | None) -> tuple[str, ...]:
        features = self.info.features
        unknown = sorted(set(keys or ()) - set(features))
        if unknown:
            raise ValueError(f"keys {unknown} are not in {self.root}; it has {list(features)}")
        return tuple(
            key
            for key, feature in features.items()
            if key in BOOKKEEPING or (key in keys if keys is not None else feature.dtype != "language")
        )

    def _checked_offsets(self, key: str, steps: Sequence[int]) -> np.ndarray:
        if key not in self.keys or key in ("index", "episode_index", "frame_index", "task_index"):
            raise ValueError(f"offsets name {key!r}, which is not one of the columns read: {list(self.keys)}")
        array = np.asarray(list(steps))
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise ValueError(f"offsets[{key!r}] must be one or more whole frame numbers, got {list(steps)!r:.80}")
        return array.astype(np.int64)

    def _chosen_episodes(self, episodes: Sequence[int] | None) -> list[int]:
        chosen = list(range(len(self.index))) if episodes is None else [int(number) for number in episodes]
        outside = [number for number in chosen if not 0 <= number < len(self.index)]
        if outside:
            raise ValueError(f"episodes {outside} are not in {self.root}, which has {len(self.index)}")
        return chosen


def _open_videos() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_VIDEOS if files == resource.RLIM_INFINITY else max(1, min(_OPEN_VIDEOS, files // 4))
