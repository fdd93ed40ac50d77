"""A LeRobot set as a map-style dataset: one item per frame, with windows of frames and actions around it."""

import operator
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from jaxtyping import UInt8
from torch import Tensor

from moteur.data.lerobot.episodes import read_episodes, read_tasks
from moteur.data.lerobot.info import BOOKKEEPING, VERSIONS, Info
from moteur.data.lerobot.open_files import BoundedCache, open_video_limit
from moteur.data.lerobot.table import SURPLUS_ROWS, TableFile
from moteur.data.lerobot.video import Backend, Decoder, choose_backend, open_video

Item = dict[str, Any]
_TABLE_BYTES = 256 * 2**20


class LeRobotSet:
    """Map-style dataset over a LeRobot set of format v3.0 or v2.1 in a local folder.

    An item is a dictionary keyed like LeRobot's own: numeric columns as tensors, pictures as unsigned bytes
    (channel, height, width), `task` as text. A key with offsets gets a leading time axis; offsets that leave the
    episode are clamped to its first or last frame and marked in `<key>_is_pad`. Unlike LeRobot, a window of one frame
    keeps its time axis, and pictures are always bytes: convert them on the device.

    Files are opened when they are needed. How many stay open is bounded, and none is shared between processes, so a set
    can be handed to forked and spawned loader workers alike. Threads may share a set; they decode one at a time.

    Args:
        root: The set's folder (see `download` for the Hub).
        offsets: Key to frame offsets, such as `{"action": range(50), "observation.images.top": (-15, 0, 15)}`.
        keys: Columns to read; all but language annotations if not given.
        episodes: Numbers of the episodes to use, in this order; all if not given.
        backend: Video decoder, `"pyav"` or `"torchcodec"`; the first that is available if not given.
        videos: Open decoders, at most as many as the cache's budget; share one among several sets. If not given, 256
            for this set alone, or a quarter of the files that the process may have open where that is less.
        tables: Decoded row groups, at most as many bytes as the cache's budget; share one among several sets.

    Attributes:
        info: The set's `info.json`.
        index: The episode index: length and place of every episode of the set.
        tasks: Task texts by `task_index`.
        episodes: Numbers of the episodes in use.

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
        self.backend: Backend = choose_backend(backend)
        self.info = Info.load(self.root)
        self.index = read_episodes(self.root, self.info)
        self.tasks = read_tasks(self.root, self.info)
        self.keys = self._chosen_keys(keys)
        self.offsets = {key: self._checked_offsets(key, values) for key, values in (offsets or {}).items()}
        self.episodes = list(range(len(self.index))) if episodes is None else _integers("episodes", episodes)
        for number in self.episodes:
            self._check_episode(number)
        self._ends = np.cumsum(self.index.length[self.episodes])
        self._videos = BoundedCache(open_video_limit()) if videos is None else videos
        self._tables = BoundedCache(_TABLE_BYTES) if tables is None else tables
        self._files: dict[tuple[int, int], TableFile] = {}

    def __repr__(self) -> str:
        cameras = [key for key in self.keys if self.info.features[key].is_visual]
        return (
            f"LeRobotSet({str(self.root)!r}, robot_type={self.info.robot_type!r}, fps={self.info.fps}, "
            f"num_episodes={len(self.episodes)}, num_frames={len(self)}, cameras={cameras})"
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> Item:
        episode, frame = self.locate(position)
        length = int(self.index.length[episode])
        file, first_row = self._table(episode)
        item: Item = {}
        present = np.array([frame])
        for key in self.keys:
            offsets = self.offsets.get(key)
            wanted = present if offsets is None else np.minimum(np.maximum(offsets + frame, 0), length - 1)
            value = self._read(key, episode, file, first_row, wanted)
            item[key] = value[0] if offsets is None else value
            if offsets is not None:
                item[f"{key}_is_pad"] = torch.from_numpy(wanted != offsets + frame)
        number = int(item["task_index"])
        if number not in self.tasks:
            known = f"{list(self.tasks)!r:.80}"
            raise ValueError(f"{file.path}: task_index: expected one of the task file's {known}, got {number}")
        return item | {"task": self.tasks[number]}

    def locate(self, position: int) -> tuple[int, int]:
        """Return the episode number and the frame number within it for a position of this dataset."""
        (position,), size = _integers("position", (position,)), len(self)
        if not -size <= position < size:
            raise IndexError(f"position: expected one of the {size} frames of {self.root}, got {position}")
        position %= size
        slot = int(np.searchsorted(self._ends, position, side="right"))
        episode = self.episodes[slot]
        return episode, position - int(self._ends[slot]) + int(self.index.length[episode])

    def column(self, key: str, episode: int) -> np.ndarray:
        """Return a numeric column of one whole episode, frame by frame."""
        self._check_episode(episode)
        file, first_row = self._table(episode)
        return file.numbers(key, np.arange(first_row, first_row + int(self.index.length[episode])))

    def frames_at(self, camera: str, episode: int, indices: Sequence[int]) -> UInt8[Tensor, "frame 3 height width"]:
        """Decode frames of one video by their numbers within the episode."""
        self._check_episode(episode)
        last, indices = int(self.index.length[episode]) - 1, _integers("indices", indices)
        if not len(indices) or min(indices) < 0 or max(indices) > last:
            raise ValueError(f"indices: expected frames 0 to {last} of episode {episode}, got {indices!r:.80}")
        spans = self.index.videos[camera]
        name = (str(self.root), camera, int(spans.chunk[episode]), int(spans.file[episode]), self.backend)
        first = int(spans.first_frame[episode])
        with self._videos.borrow(name, lambda: self._open_video(camera, episode)) as decoder:
            pictures = decoder.frames_at([first + number for number in indices])
        expected, found = self.info.features[camera].height_and_width, tuple(pictures.shape[-2:])
        if found != expected:
            path = self.path_of(camera, episode)
            raise ValueError(f"{path}: expected pictures of {expected} as info.json says, got {found}")
        return pictures

    def path_of(self, key: str, episode: int) -> Path:
        """Return the file that holds a column of an episode: an mp4 file for a video, else a parquet file."""
        spans, template = self.index.videos.get(key), self.info.data_path
        if spans is not None:
            template = self.info.video_path or ""
        path = template.format(
            video_key=key,
            chunk_index=int((spans or self.index).chunk[episode]),
            file_index=int((spans or self.index).file[episode]),
            episode_index=episode,
            episode_chunk=episode // self.info.chunks_size,
        )
        return self.root / path

    @staticmethod
    def download(repo_id: str, *, revision: str | None = None, cache_dir: Path | str | None = None) -> Path:
        """Download a LeRobot set from the Hugging Face Hub, or find it in the cache, and return its folder.

        LeRobot marks format versions by Git tags, so the newest known version's tag is asked for first, then the older
        one's, then the main branch, whose `info.json` says what it is.

        Args:
            repo_id: Name on the Hub, such as `"lerobot/pusht"`.
            revision: A tag, branch or commit to take instead.
            cache_dir: Where to keep it; the Hub's own cache if not given.

        Raises:
            ValueError: None of the revisions exists; or the name is a path here, or begins with a folder here and comes
                without a revision.
            FileNotFoundError: The Hub cannot be reached, and none of the revisions is in the cache.
        """
        if Path(repo_id).exists() or (revision is None and Path(repo_id).parent.is_dir() and "/" in repo_id):
            raise ValueError(f"repo_id: expected owner/name on the Hub, got {repo_id!r}, a path on this machine")
        tried = (revision,) if revision else (*VERSIONS, "main")
        unreachable: LocalEntryNotFoundError | None = None
        for candidate in tried:
            try:
                return Path(snapshot_download(repo_id, repo_type="dataset", revision=candidate, cache_dir=cache_dir))
            except RevisionNotFoundError:
                continue
            except LocalEntryNotFoundError as error:  # offline: an older version may be in the cache
                unreachable = unreachable or error
        if unreachable is not None:
            raise unreachable
        raise ValueError(f"repo_id: expected a set with one of the revisions {', '.join(tried)}, got {repo_id!r}")

    def close(self) -> None:
        """Close the videos that this process has open."""
        self._videos.clear()
        self._tables.clear()

    def _read(self, key: str, episode: int, file: TableFile, first_row: int, indices: np.ndarray) -> Any:  # noqa: ANN401
        feature = self.info.features[key]
        if feature.dtype == "video":
            return self.frames_at(key, episode, indices.tolist())
        if feature.dtype == "image":
            return file.pictures(key, indices + first_row)
        if feature.dtype == "string":
            return file.texts(key, indices + first_row)
        return torch.from_numpy(file.numbers(key, indices + first_row))

    def _table(self, episode: int) -> tuple[TableFile, int]:
        index, name = self.index, (int(self.index.chunk[episode]), int(self.index.file[episode]))
        if name not in self._files:
            features = {key: self.info.features[key] for key in self.keys if self.info.features[key].dtype != "video"}
            count = int(index.length[(index.chunk == name[0]) & (index.file == name[1])].sum())
            check = partial(
                index.check_rows,
                first=int(index.file_start[episode]),
                count=count,
                fps=self.info.fps if self.info.video_keys else None,
            )
            file = TableFile(self.path_of("index", episode), features=features, cache=self._tables, check=check)
            # A v3.0 file may go on with the rows of an episode whose recording was cut off.
            surplus = file.num_rows - count
            unfinished = self.info.version == "v3.0" and 0 < surplus <= SURPLUS_ROWS
            if unfinished:
                unfinished = (file.numbers("episode_index", np.arange(count, file.num_rows)) >= len(index)).all()
            if surplus and not unfinished:
                expected = f"{count} rows by the lengths in the episode index"
                raise ValueError(f"{file.path}: expected {expected}, got {file.num_rows}")
            self._files[name] = file
        return self._files[name], int(index.start[episode] - index.file_start[episode])

    def _open_video(self, camera: str, episode: int) -> Decoder:
        path = self.path_of(camera, episode)
        if self.info.features[camera].is_depth:
            raise ValueError(f"{path}: expected colours, got depth, which is not read; leave {camera} out of keys")
        decoder = open_video(path, fps=self.info.fps, backend=self.backend)
        spans = self.index.videos[camera]
        chunk, file = spans.chunk[episode], spans.file[episode]
        expected = int((spans.first_frame + self.index.length)[(spans.chunk == chunk) & (spans.file == file)].max())
        # The last v3.0 file may go on with the frames of an episode whose recording was cut off.
        last = not ((spans.chunk > chunk) | ((spans.chunk == chunk) & (spans.file > file))).any()
        surplus = decoder.num_frames > expected and not (last and self.info.version == "v3.0")
        if decoder.num_frames and (decoder.num_frames < expected or surplus):
            decoder.close()
            raise ValueError(f"{path}: expected {expected} frames by the episode index, got {decoder.num_frames}")
        return decoder

    def _check_episode(self, episode: int) -> None:
        _integers("episode", (episode,))
        if not 0 <= episode < len(self.index):
            raise ValueError(f"episode: expected one of the {len(self.index)} episodes of {self.root}, got {episode}")

    def _chosen_keys(self, keys: Collection[str] | None) -> tuple[str, ...]:
        features = self.info.features
        unknown = sorted(set(keys or ()) - set(features))
        if unknown:
            raise ValueError(f"keys: expected columns of {self.root} {list(features)}, got {unknown}")
        return tuple(
            key
            for key, feature in features.items()
            if key in BOOKKEEPING or (key in keys if keys is not None else feature.dtype != "language")
        )

    def _checked_offsets(self, key: str, offsets: Sequence[int]) -> np.ndarray:
        allowed = [name for name in self.keys if name not in ("index", "episode_index", "frame_index", "task_index")]
        if key not in allowed:
            raise ValueError(f"offsets: expected some of the columns that are read {allowed}, got {key!r}")
        return np.array(_integers(f"offsets[{key!r}]", offsets), dtype=np.int64)


def _integers(name: str, values: Sequence[int]) -> list[int]:
    """The same as Python's integers; True is none, as in a mask."""
    try:
        if not any(isinstance(value, bool) for value in values):
            return [operator.index(value) for value in values]
    except TypeError:
        pass
    raise ValueError(f"{name}: expected integers, got {values!r:.80}")
