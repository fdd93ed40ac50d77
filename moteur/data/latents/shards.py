"""Which frames stand in which shard: runs of episodes, named by their content."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moteur.data.latents.keys import file_digest, key
from moteur.data.lerobot.dataset import LeRobotSet

Stamp = tuple[int, int] | None
_FRAMES = 1024  # of each camera: 96 MiB of the released tokenizer's latents in bfloat16, for three cameras


@dataclass(frozen=True)
class Shard:
    """Some consecutive episodes whose latents share a file.

    Attributes:
        key: Digest of everything the latents depend on: the name of the file.
        episodes: Numbers of the episodes.
        ingredients: What the key is the digest of.
        files: The files that hold the pictures, each with its size and its time of change as it was read.
    """

    key: str
    episodes: tuple[int, ...]
    ingredients: Mapping[str, Any]
    files: Mapping[Path, Stamp]

    def expect_unchanged(self) -> None:
        """Refuse a shard whose files are not those that it was named after.

        Raises:
            ValueError: A file is gone, or has another size or time of change.
        """
        for path, stamp in self.files.items():
            if (found := _stamp(path)) != stamp:
                raise ValueError(
                    f"{path}: expected the file of {stamp}, as the cache of latents was opened, got {found} (bytes and "
                    "time of change in ns); open the cache again"
                )


def plan_shards(
    source: LeRobotSet, cameras: Sequence[str], settings: Mapping[str, Any], *, progress: bool = True
) -> list[Shard]:
    """Divide a set into shards, and read every file that holds their pictures once to name them.

    How the set is divided depends on the lengths of all its episodes, not on which of them are used, so that two parts
    of a set (training, validation) share their shards.

    Args:
        source: The set; shards without an episode that it uses are left out.
        cameras: Columns of the pictures.
        settings: What else the latents depend on.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: A file with pictures is missing.
    """
    used = set(source.episodes)
    groups = [group for group in _runs(source.index.length.tolist()) if used.intersection(group)]
    digests: dict[Path, str] = {}
    stamps: dict[Path, Stamp] = {}
    shards: list[Shard] = []
    for group in tqdm(groups, desc="naming latents", unit="shard", disable=not progress):
        frames: list[list[Any]] = []
        files: dict[Path, Stamp] = {}
        for episode in group:
            for camera in cameras:
                path, first = picture_file(source, camera, episode)
                if path not in digests:
                    stamps[path] = _stamp(path)  # before reading: a change meanwhile must show
                    digests[path] = file_digest(path)
                files[path] = stamps[path]
                frames.append([camera, digests[path], first, int(source.index.length[episode])])
        ingredients = {
            **settings,
            "fps": source.info.fps,
            "pictures": key(frames),
        }  # the list itself would grow with the episodes
        shards.append(Shard(key(ingredients), tuple(group), ingredients, files))
    return shards


def picture_file(source: LeRobotSet, camera: str, episode: int) -> tuple[Path, int]:
    """The file that holds a camera's pictures of an episode, and the number of the first one in it."""
    info, index = source.info, source.index
    if info.features[camera].dtype == "video":
        spans = index.videos[camera]
        chunk, file, first = int(spans.chunk[episode]), int(spans.file[episode]), int(spans.first_frame[episode])
        template = info.video_path or ""
    else:
        chunk, file = int(index.chunk[episode]), int(index.file[episode])
        first = int(index.start[episode] - index.file_start[episode])
        template = info.data_path
    path = template.format(
        video_key=camera,
        chunk_index=chunk,
        file_index=file,
        episode_index=episode,
        episode_chunk=episode // info.chunks_size,
    )
    return source.root / path, first


def _stamp(path: Path) -> Stamp:
    """Size in bytes and time of change in nanoseconds; None where there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _runs(lengths: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    frames = 0
    for episode, length in enumerate(lengths):
        if group and frames + length > _FRAMES:
            yield group
            group, frames = [], 0
        group.append(episode)
        frames += length
    if group:
        yield group
