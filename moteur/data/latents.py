"""Cached latents: every frame of a set encoded once by a frozen image tokenizer, then read instead of encoded."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL
import torch
from cachetools import LRUCache
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from moteur.data.images import as_unit_floats
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.video import Backend
from moteur.data.robot_dataset import RobotDataset
from moteur.data.samples import RobotTransform, Sample

Encode = Callable[[Float[Tensor, "frame 3 size size"]], Float[Tensor, "frame channel rows columns"]]

_LAYOUT = 2  # of the files; part of their names, to be raised when the content of a file changes its meaning
_DIGEST_BYTES = 20
_SHARD_FRAMES = 1024  # of each camera: 96 MiB of the released tokenizer's latents in bfloat16, for three cameras
_OPEN_SHARDS = 64
_PROBE_HEIGHT, _PROBE_WIDTH = 45, 60  # neither square nor powers of two, so that resizing and padding take part
_ROUNDINGS = 16
_TENSOR_FLOAT = 2.0**-10  # convolutions on a GPU may round float32 to this


@dataclass(frozen=True)
class Shard:
    """Consecutive episodes whose latents share a file.

    Attributes:
        key: Digest of `ingredients`, and the file's name.
        episodes: Episode numbers.
        ingredients: Everything that the latents depend on.
    """

    key: str
    episodes: tuple[int, ...]
    ingredients: Mapping[str, Any]


class LatentCache:
    """Cached latents of one set under one tokenizer.

    Latents are stored in safetensors files of about a thousand frames of each camera. A file's name is a digest of
    everything that its latents depend on: the bytes of the files that hold the pictures, where in them the frames are,
    the names and versions of the decoders, the transform of pictures, the tokenizer and the stored dtype. Latents that
    were made from anything else have another name and are not found, so one folder may hold those of many sets and
    tokenizers. Opening a cache reads every file with pictures once.

    Code and builds are not part of the name. Each file therefore also holds the latents of a fixed picture and digests
    of one decoded frame of each camera; `verify` compares both with what this process computes.

    Args:
        folder: Folder of the files.
        dataset: The set and its transform of pictures. States, actions and the window play no part.
        encode: The tokenizer: float frames in [0, 1] on the CPU, (n, 3, size, size), to latents, (n, channel, rows,
            columns), on any device. Used to encode the fixed picture and not kept.
        digest: Digest of the tokenizer: of its weights and of everything else its latents depend on.
        dtype: Dtype of the stored latents. Default: that of `encode`'s results, which are then not rounded.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: A file with pictures is missing.
    """

    def __init__(
        self,
        folder: Path | str,
        dataset: RobotDataset,
        *,
        encode: Encode,
        digest: str,
        dtype: torch.dtype | None = None,
        progress: bool = True,
    ) -> None:
        source, transform = dataset.source, dataset.transform
        self.folder, self.root = Path(folder), source.root
        self.cameras = tuple(dict.fromkeys(camera for camera in transform.robot.cameras if camera))
        self.backend: Backend = source.backend
        self.decoders = _decoders(source, self.cameras)
        self.picture_settings = _picture_settings(transform)
        probe = encode(as_unit_floats(transform.resize(_probe_picture()[None])))[0].cpu()
        self.computed_in, self.dtype = probe.dtype, dtype or probe.dtype
        self.probe = probe.to(self.dtype)
        self._settings = {
            "layout": _LAYOUT,
            "tokenizer": digest,
            "frames": self.picture_settings,
            "dtype": str(self.dtype),
            "decoders": self.decoders,
            "fps": source.info.fps,
        }
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}
        self._open: LRUCache[str, Any] = LRUCache(_OPEN_SHARDS)
        self._progress = progress
        # Shards depend on the lengths of all episodes, not on those in use: two parts of a set share them.
        used, groups = set(source.episodes), _groups(source.index.length.tolist())
        self.shards = [
            self.shard(source, group)
            for group in tqdm(list(groups), desc="naming latents", unit="shard", disable=not progress)
            if used.intersection(group)
        ]
        self._place = {episode: (shard, place) for shard in self.shards for place, episode in enumerate(shard.episodes)}

    def __repr__(self) -> str:
        return (
            f"LatentCache({str(self.folder)!r}: {len(self._place)} episodes of {str(self.root)!r}, cameras "
            f"{', '.join(self.cameras)}, {self.dtype}, {len(self.missing)} of {len(self.shards)} files missing)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": LRUCache(_OPEN_SHARDS)}  # memory maps stay in their process

    @property
    def missing(self) -> list[Shard]:
        """Shards whose file does not exist."""
        return [shard for shard in self.shards if not self.path(shard).is_file()]

    def path(self, shard: Shard) -> Path:
        """File of a shard."""
        return self.folder / f"{shard.key}.safetensors"

    def shard(self, source: LeRobotSet, episodes: Sequence[int]) -> Shard:
        """Name the shard of these episodes by what its latents depend on.

        Each file with pictures is read once, and again if its size or time of change differs.

        Raises:
            FileNotFoundError: A file with pictures is missing.
            ValueError: A file has other content than when it was first read.
        """
        places: list[list[Any]] = []
        for episode in episodes:
            for camera in self.cameras:
                path, first = source.path_of(camera, episode), _first_picture(source, camera, episode)
                places.append([camera, self._file_digest(path), first, int(source.index.length[episode])])
        ingredients = self._settings | {"pictures": _digest(places)}  # the list itself would grow with the episodes
        return Shard(_digest(ingredients), tuple(episodes), ingredients)

    def pictures(self) -> LeRobotSet:
        """Open the whole set, pictures only."""
        return LeRobotSet(self.root, keys=self.cameras, backend=self.backend)

    def check_dataset(self, dataset: RobotDataset) -> None:
        """Check that these are the latents of a dataset's frames.

        Raises:
            ValueError: Folder, transform of pictures, cameras, decoders or episodes differ.
        """
        source, transform = dataset.source, dataset.transform
        cameras = {camera for camera in transform.robot.cameras if camera}
        decoders = _decoders(source, cameras)
        for what, expected, found in (
            ("root", source.root.resolve(), self.root.resolve()),
            ("frames", _picture_settings(transform), self.picture_settings),
            ("cameras", sorted(cameras), sorted(cameras.intersection(self.cameras))),
            ("decoders", decoders, {kind: self.decoders.get(kind) for kind in decoders}),
            ("episodes", source.episodes, [number for number in source.episodes if number in self._place]),
        ):
            if found != expected:
                raise ValueError(
                    f"cache: expected latents of the dataset's {what} {expected!s:.300}, got {found!s:.300}"
                )

    def verify(self) -> None:
        """Check that every file is present, undamaged, and computed from the same pixels by the same code.

        Raises:
            FileNotFoundError: Latents are missing: never written, or made with other pictures, decoders, transform,
                tokenizer or dtype.
            ValueError: A file is damaged; it was computed by code that gives other latents, or from pixels that this
                machine decodes otherwise; or pictures changed since the cache was opened.
        """
        missing = [number for shard in self.missing for number in shard.episodes]
        if missing:
            raise FileNotFoundError(
                f"{self.folder}: expected latents made with these pictures, decoders, transform, tokenizer and dtype, "
                f"got none of {len(missing)} episodes of {self.root} (the first is {missing[0]}); write them with "
                "write_latents"
            )
        pictures = self.pictures()
        for shard in tqdm(self.shards, desc="checking latents", unit="shard", disable=not self._progress):
            self.shard(pictures, shard.episodes)  # raises if pictures changed
            path, file = self.path(shard), self._file(shard)
            self._check_probe(path, file.get_tensor("probe"))
            self._check_pixels(path, json.loads(file.metadata()["pixels"]), pictures, shard)
        pictures.close()

    def read(self, camera: str, episode: int, indices: Sequence[int]) -> Float[Tensor, "frame channel rows columns"]:
        """Latents of one camera's frames, by their numbers within the episode.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: The file is damaged.
        """
        shard, place = self._place[episode]
        stored = self._file(shard).get_slice(f"{place}/{camera}")
        return torch.cat([stored[number : number + 1] for number in indices])

    def _file_digest(self, path: Path) -> str:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing")
        status = path.stat()  # before reading, so that a change while reading shows next time
        stamp = status.st_size, status.st_mtime_ns
        known, digest = self._digests.get(path, (None, None))
        if known != stamp:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            if digest not in (None, found):
                raise ValueError(
                    f"{path}: expected the content it had when the cache of latents was opened, got another; open the "
                    "cache again"
                )
            self._digests[path] = stamp, found
        return self._digests[path][1]

    def _file(self, shard: Shard) -> Any:  # noqa: ANN401 - safetensors ships no types
        if shard.key not in self._open:
            path = self.path(shard)
            if not path.is_file():
                raise FileNotFoundError(f"{path}: missing; write the latents with write_latents")
            try:
                self._open[shard.key] = safe_open(os.fspath(path), "pt")
            except SafetensorError as error:
                raise ValueError(
                    f"{path}: expected a file of latents, got one that cannot be read ({error}); delete it and write "
                    "the latents again"
                ) from error
        return self._open[shard.key]

    def _check_probe(self, path: Path, stored: Tensor) -> None:
        """Compare latents of the fixed picture up to rounding: root mean squares to within 16 roundings.

        Other devices, thread counts and library versions sum in another order, so bits need not be the same.
        """
        now = self.probe
        if stored.shape != now.shape:
            raise ValueError(f"{path}: expected a probe of shape {tuple(now.shape)}, got {tuple(stored.shape)}")
        allowed = _ROUNDINGS * max(torch.finfo(self.computed_in).eps, torch.finfo(now.dtype).eps, _TENSOR_FLOAT)
        error, size = (stored.double() - now.double()).square().mean().sqrt(), now.double().square().mean().sqrt()
        if not error <= allowed * size:
            raise ValueError(
                f"{path}: expected a probe within rounding ({allowed:.2g} of its size) of what this code computes, got "
                f"a difference of {float(error / size):.2g}; write the latents again, into another folder"
            )

    def _check_pixels(self, path: Path, stored: dict[str, str], pictures: LeRobotSet, shard: Shard) -> None:
        for camera, digest in pixel_digests(pictures, tuple(stored), shard).items():
            if digest != stored[camera]:
                episode, number = _sampled_frame(pictures, shard)
                file = pictures.path_of(camera, episode)
                raise ValueError(
                    f"{file}: frame {_first_picture(pictures, camera, episode) + number}: expected the pixels that its "
                    f"latents were made from, got others with the same file and versions ({self.decoders}); write the "
                    f"latents again, into another folder than that of {path}"
                )


class LatentDataset:
    """Samples of a `RobotDataset` with cached latents instead of frames: a map-style dataset.

    The dataset's window gives the times of the latents. A sample is that of the dataset, except that `frames` holds the
    present alone, for the vision tower, and `latents` and `future_latents` are set: clamped to the episode, zeros for a
    missing camera. `frame_valid` is that of all times, as for frames.

    Args:
        dataset: Samples with frames; their window holds history, present and future.
        cache: Their latents. They are verified here, so that a run does not stop in its middle.

    Raises:
        FileNotFoundError: Latents are missing.
        ValueError: Latents are damaged, not what this code computes, or of other frames than the dataset's; or the
            window is of the present only.
    """

    def __init__(self, dataset: RobotDataset, cache: LatentCache) -> None:
        window = dataset.transform.window
        if window.num_times == 1:
            raise ValueError(f"dataset: expected a window of history, present and future, got {window}")
        cache.check_dataset(dataset)
        cache.verify()
        self.transform, self.cache = dataset.transform, cache
        self._present = dataset.of_the_present()
        self._offsets = np.array(window.frame_offsets(dataset.source.info.fps))

    def __repr__(self) -> str:
        return f"LatentDataset({len(self)} samples, latents at offsets {tuple(self._offsets.tolist())}, {self.cache!r})"

    def __len__(self) -> int:
        return len(self._present)

    def __getitem__(self, position: int) -> Sample:
        source, cameras = self._present.source, self.transform.robot.cameras
        episode, frame = source.locate(position)
        wanted = np.clip(frame + self._offsets, 0, int(source.index.length[episode]) - 1)
        latents = torch.zeros(len(cameras), len(wanted), *self.cache.probe.shape, dtype=self.cache.dtype)
        for view, camera in enumerate(cameras):
            if camera is not None:
                latents[view] = self.cache.read(camera, episode, wanted.tolist())
        present = torch.tensor([camera is not None for camera in cameras])
        inside = torch.from_numpy(wanted == frame + self._offsets)
        return _with_latents(self._present[position], latents, present[:, None] & inside)


def _with_latents(
    sample: Sample, latents: Float[Tensor, "view time channel rows columns"], valid: Bool[Tensor, "view time"]
) -> Sample:
    return replace(sample, frame_valid=valid, latents=latents[:, :2], future_latents=latents[:, 2])


def pixel_digests(pictures: LeRobotSet, cameras: Sequence[str], shard: Shard) -> dict[str, str]:
    """Digests of one decoded frame of each camera, from the middle of a shard.

    Raises:
        FileNotFoundError: A file with pictures is missing.
        ValueError: A file with pictures is damaged.
    """
    episode, number = _sampled_frame(pictures, shard)
    item = pictures[int(pictures.index.start[episode]) + number]
    found: dict[str, str] = {}
    for camera in cameras:
        digest = hashlib.blake2b(repr(tuple(item[camera].shape)).encode(), digest_size=_DIGEST_BYTES)
        digest.update(item[camera].contiguous().numpy().data)
        found[camera] = digest.hexdigest()
    return found


def _sampled_frame(source: LeRobotSet, shard: Shard) -> tuple[int, int]:
    """Episode and frame number whose pixels are compared."""
    episode = shard.episodes[len(shard.episodes) // 2]
    return episode, int(source.index.length[episode]) // 2


def _decoders(source: LeRobotSet, cameras: Collection[str]) -> dict[str, dict[str, str]]:
    """Names and versions of the software that decodes these cameras' pictures: videos, and pictures in tables."""
    kinds = {source.info.features[camera].dtype for camera in cameras}
    found: dict[str, dict[str, str]] = {}
    if "video" in kinds:
        backend = source.backend
        found["video"] = {"backend": backend, "version": av.__version__ if backend == "pyav" else version(backend)}
        if backend == "pyav":  # FFmpeg's decoding, and its conversion of colours to red, green and blue
            libraries: dict[str, Any] = av.library_versions
            found["video"] |= {name: ".".join(map(str, libraries[name])) for name in ("libavcodec", "libswscale")}
    if "image" in kinds:
        found["image"] = {"pillow": PIL.__version__}
    return found


def _picture_settings(transform: RobotTransform) -> dict[str, Any]:
    """What a transform does to pictures."""
    return {"size": transform.size, "images": transform.images}


def _first_picture(source: LeRobotSet, camera: str, episode: int) -> int:
    """Number of an episode's first picture in the camera's file."""
    index, spans = source.index, source.index.videos.get(camera)
    return int(index.start[episode] - index.file_start[episode] if spans is None else spans.first_frame[episode])


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive episodes of at most a shard's frames together, or a single longer one."""
    group: list[int] = []
    for episode in range(len(lengths)):
        if group and sum(lengths[group[0] : episode + 1]) > _SHARD_FRAMES:
            yield group
            group = []
        group.append(episode)
    yield group


def _digest(values: Any) -> str:  # noqa: ANN401 - plain values, as JSON holds them
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _probe_picture() -> UInt8[Tensor, "3 height width"]:
    channel = torch.arange(3).view(3, 1, 1)
    row, column = torch.arange(_PROBE_HEIGHT).view(1, -1, 1), torch.arange(_PROBE_WIDTH).view(1, 1, -1)
    return ((row * row * 3 + column * (5 + channel) * 7 + row * column) % 256).to(torch.uint8)
