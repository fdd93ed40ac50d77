"""Cached latents: every frame of a set encoded once by a frozen image tokenizer, then read instead of encoded."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import PIL
import torch
from cachetools import LRUCache
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from moteur.data.images import as_unit_floats
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import Info
from moteur.data.lerobot.video import Backend
from moteur.data.samples import RobotTransform
from moteur.files import remove_drafts, write_whole

Encode = Callable[[Float[Tensor, "frame 3 size size"]], Float[Tensor, "frame channel rows columns"]]

_LAYOUT = 2  # of the files; part of their names, to be raised when the content of a file changes its meaning
_DIGEST_BYTES = 20
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHARD_FRAMES = 1024  # of each camera: 96 MiB of the released tokenizer's latents in bfloat16, for three cameras
_OPEN_SHARDS = 64
_PROBE_HEIGHT, _PROBE_WIDTH = 45, 60  # neither square nor powers of two, so that resizing and padding take part
_ROUNDINGS = 16
_TENSOR_FLOAT = 2.0**-10  # convolutions on a GPU may round float32 to this


@dataclass(frozen=True)
class Shard:
    """Consecutive episodes whose latents share a file, named by a digest of everything that the latents depend on."""

    key: str
    episodes: tuple[int, ...]
    ingredients: Mapping[str, Any]


class LatentCache:
    """Cached latents of one set under one tokenizer.

    A file holds the latents of about a thousand frames of each camera. Its name is a digest of everything that they
    depend on: the bytes of the files that hold the pictures, where in them the frames are, the names and versions of
    the decoders, the transform of pictures, the tokenizer and the stored dtype. Latents of anything else have another
    name and are not found, so one folder may serve many sets. Opening a cache reads every file with pictures once.

    A file also holds what no name can tell of code and builds: the latents of a fixed picture, and digests of one
    decoded frame of each camera. `verify` compares both with what this process computes.

    Args:
        folder: Folder of the files; may hold latents of other sets and tokenizers.
        root: Folder of the set.
        transform: How frames are resized. States, actions and the window play no part.
        encode: The tokenizer: float frames in [0, 1] on the CPU, (n, 3, size, size), to latents, (n, channel, rows,
            columns), on any device. Loader workers get no copy. For InternVLA-A1: `model.foresight.encode`.
        digest: Digest of the tokenizer: of its weights and of everything else its latents depend on. For InternVLA-A1:
            `model.foresight.digest()`.
        dtype: Dtype of the stored latents, float32, float16 or bfloat16, or its name. Default: that of `encode`'s
            results, which are then not rounded.
        episodes: Numbers of the episodes in use. Default: all.
        backend: As for `LeRobotSet`.
        progress: Show a progress bar.
    """

    def __init__(
        self,
        folder: Path | str,
        root: Path | str,
        transform: RobotTransform,
        *,
        encode: Encode,
        digest: str,
        dtype: torch.dtype | str | None = None,
        episodes: Sequence[int] | None = None,
        backend: Backend | None = None,
        progress: bool = True,
    ) -> None:
        stored = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if dtype is not None and stored not in _DTYPES.values():
            raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)}, or None for that of encode, got {dtype!r}")
        self.folder, self.root, self.transform, self._encode = Path(folder), Path(root), transform, encode
        self.cameras = tuple(dict.fromkeys(camera for camera in transform.robot.cameras if camera))
        transform.robot.check(Info.load(root), self.root)
        source = LeRobotSet(root, keys=self.cameras, episodes=episodes, backend=backend)
        self.backend: Backend = source.backend
        self.decoders = _decoders(source, self.cameras)
        probe = encode(as_unit_floats(transform.resize(_probe_picture()[None])))[0].cpu()
        self.computed_in, self.dtype = probe.dtype, probe.dtype if stored is None else stored
        self.probe = probe.to(self.dtype)
        self._settings = {
            "layout": _LAYOUT,
            "tokenizer": digest,
            "frames": _picture_settings(transform),
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
        # Memory maps stay in their process, and the tokenizer in the one that writes.
        return self.__dict__ | {"_open": LRUCache(_OPEN_SHARDS), "_encode": None}

    @property
    def missing(self) -> list[Shard]:
        """Shards whose file does not exist."""
        return [shard for shard in self.shards if not self.path(shard).is_file()]

    def path(self, shard: Shard) -> Path:
        """File of a shard."""
        return self.folder / f"{shard.key}.safetensors"

    def shard(self, source: LeRobotSet, episodes: Sequence[int]) -> Shard:
        """Name the shard of these episodes; refuse files with other content than when they were first read."""
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

    def check(self, source: LeRobotSet, transform: RobotTransform) -> None:
        """Refuse a set or transform of another folder, size, cameras, decoders or episodes."""
        cameras = {camera for camera in transform.robot.cameras if camera}
        decoders = _decoders(source, cameras)
        for what, expected, found in (
            ("root", source.root.resolve(), self.root.resolve()),
            ("frames", _picture_settings(transform), self._settings["frames"]),
            ("cameras", sorted(cameras), sorted(cameras.intersection(self.cameras))),
            ("decoders", decoders, {kind: self.decoders.get(kind) for kind in decoders}),
            ("episodes", source.episodes, [number for number in source.episodes if number in self._place]),
        ):
            if found != expected:
                wanted = f"those of the dataset's {what} {expected!s:.300}"
                raise ValueError(f"latents: expected {wanted}, got {found!s:.300}")

    def verify(self) -> None:
        """Check that every file is present, undamaged, and computed from the same pixels by the same code.

        Raises:
            FileNotFoundError: Latents were never written, or made with anything else.
            ValueError: A file is damaged, or was computed by other code or from pixels that this machine decodes
                otherwise; or pictures changed since the cache was opened.
        """
        missing = [number for shard in self.missing for number in shard.episodes]
        if missing:
            expected = "latents made with these pictures, decoders, transform, tokenizer and dtype"
            found = f"none of {len(missing)} episodes of {self.root} (the first is {missing[0]})"
            raise FileNotFoundError(f"{self.folder}: expected {expected}, got {found}; LatentCache.write() makes them")
        pictures = self.pictures()
        for shard in tqdm(self.shards, desc="checking latents", unit="shard", disable=not self._progress):
            self.shard(pictures, shard.episodes)  # raises if pictures changed
            path, file = self.path(shard), self._file(shard)
            self._check_probe(path, file.get_tensor("probe"))
            stored, (episode, number, found) = json.loads(file.metadata()["pixels"]), _pixels(pictures, shard)
            for camera in stored:
                if found[camera] != stored[camera]:
                    frame = _first_picture(pictures, camera, episode) + number
                    where = f"{pictures.path_of(camera, episode)}: frame {frame}"
                    raise ValueError(
                        f"{where}: expected the pixels that the latents in {path} were made from, got others with the "
                        f"same file and versions ({self.decoders}); write them again, into another folder"
                    )
        pictures.close()

    def write(self, *, batch_size: int = 32, rank: int = 0, ranks: int = 1) -> None:
        """Encode the frames whose latents are not in the folder yet.

        Each file is flushed to the disk under a temporary name and then renamed, so that an interrupted run leaves
        complete files and at most one that ends in `.part`, which nothing reads; the next run removes it and continues.
        Episodes that share a file with those in use are encoded as well.

        Args:
            batch_size: Frames of each camera to encode at once.
            rank: Part of the work to do, from 0, when several processes share it.
            ranks: Number of processes that share the work.

        Raises:
            ValueError: The set is damaged or changes meanwhile, or `rank` is not below `ranks`.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank: expected a number in [0, {ranks}), got {rank}")
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(self.folder)
        pictures = self.pictures()
        todo = [shard for shard in self.shards[rank::ranks] if not self.path(shard).is_file()]
        count = sum(int(pictures.index.length[list(shard.episodes)].sum()) for shard in todo)
        with tqdm(total=count, desc="encoding", unit="frame", disable=not self._progress) as bar:
            for shard in todo:
                tensors = {"probe": self.probe}
                for place, episode in enumerate(shard.episodes):
                    start, parts = int(pictures.index.start[episode]), list[Tensor]()
                    positions = range(start, start + int(pictures.index.length[episode]))
                    for first in range(0, len(positions), batch_size):
                        parts.append(self._encoded([pictures[at] for at in positions[first : first + batch_size]]))
                        bar.update(len(parts[-1]))
                    for camera, latents in zip(self.cameras, torch.cat(parts).unbind(1), strict=True):
                        tensors[f"{place}/{camera}"] = latents.contiguous()
                metadata = {"ingredients": shard.ingredients, "pixels": _pixels(pictures, shard)[2]}
                self.shard(pictures, shard.episodes)  # raises if pictures changed since they were named
                plain = {name: json.dumps(value) for name, value in metadata.items()}
                write_whole(self.path(shard), save(tensors, plain))
        pictures.close()

    def read(self, camera: str, episode: int, indices: Sequence[int]) -> Float[Tensor, "frame channel rows columns"]:
        """Latents of one camera's frames, by their numbers within the episode."""
        shard, place = self._place[episode]
        stored = self._file(shard).get_slice(f"{place}/{camera}")
        return torch.cat([stored[number : number + 1] for number in indices])

    def _encoded(self, items: Sequence[Mapping[str, Any]]) -> Tensor:
        views = [self.transform.resize(torch.stack([item[camera] for item in items])) for camera in self.cameras]
        frames = as_unit_floats(torch.stack(views, dim=1).flatten(0, 1))
        return self._encode(frames).to("cpu", self.dtype).unflatten(0, (len(items), len(views)))

    def _file_digest(self, path: Path) -> str:
        status = path.stat()  # before reading, so that a change while reading shows next time
        stamp = status.st_size, status.st_mtime_ns
        known, digest = self._digests.get(path, (None, None))
        if known != stamp:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()
            if digest not in (None, found):
                raise ValueError(f"{path}: expected the content it had when it was first read; open the cache again")
            self._digests[path] = stamp, found
        return self._digests[path][1]

    def _file(self, shard: Shard) -> Any:  # noqa: ANN401 - safetensors ships no types
        if shard.key not in self._open:
            path = self.path(shard)
            try:
                self._open[shard.key] = safe_open(os.fspath(path), "pt")
            except SafetensorError as error:
                message = f"{path}: expected a file of latents, got damage ({error}); delete it and write it again"
                raise ValueError(message) from error
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
            expected = f"a probe within rounding ({allowed:.2g} of its size) of what this code computes"
            raise ValueError(f"{path}: expected {expected}, got a difference of {float(error / size):.2g}")


def _pixels(pictures: LeRobotSet, shard: Shard) -> tuple[int, int, dict[str, str]]:
    """Episode and frame number of one frame from the middle of a shard, and digests of its pixels by camera."""
    episode = shard.episodes[len(shard.episodes) // 2]
    number = int(pictures.index.length[episode]) // 2
    item = pictures[int(pictures.index.start[episode]) + number]
    found: dict[str, str] = {}
    for camera in (key for key in pictures.keys if pictures.info.features[key].is_visual):
        digest = hashlib.blake2b(repr(tuple(item[camera].shape)).encode(), digest_size=_DIGEST_BYTES)
        digest.update(item[camera].contiguous().numpy().data)
        found[camera] = digest.hexdigest()
    return episode, number, found


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
    settings = {"size": transform.size, "images": transform.images}
    # Folders of earlier versions do not name it.
    return settings if transform.convention == "internvla_a1" else settings | {"convention": transform.convention}


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
