"""Which software decodes a set's pictures here, and what it makes of one of them."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import PIL

from moteur.data.latents.shards import Shard, picture_file
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.video import available_backends

_LIBRARIES = ("libavcodec", "libswscale")  # of FFmpeg: decoding, and the way from its colours to red, green and blue
_BYTES = 20


def decoders(source: LeRobotSet, cameras: Sequence[str]) -> dict[str, dict[str, str]]:
    """Names and versions of what decodes these columns: one entry for videos, one for pictures in tables."""
    kinds = {source.info.features[camera].dtype for camera in cameras}
    found: dict[str, dict[str, str]] = {}
    if "video" in kinds:
        found["video"] = _video(source.backend or available_backends()[0])
    if "image" in kinds:
        found["image"] = {"pillow": PIL.__version__}
    return found


def looked_at(source: LeRobotSet, shard: Shard) -> tuple[int, int]:
    """The episode of a shard, and the frame of it, whose pixels are compared: one from the middle."""
    episode = shard.episodes[len(shard.episodes) // 2]
    return episode, int(source.index.length[episode]) // 2


def pixels(source: LeRobotSet, cameras: Sequence[str], shard: Shard) -> dict[str, str]:
    """Digest of that frame as each camera decodes, bytes and size.

    Args:
        source: A reader of the whole set, without windows.
        cameras: Columns of the pictures.
        shard: Some of its episodes.

    Raises:
        FileNotFoundError: A file with pictures is missing.
        ValueError: One is damaged; it is named.
    """
    episode, number = looked_at(source, shard)
    item = source[int(source.index.start[episode]) + number]
    found: dict[str, str] = {}
    for camera in cameras:
        digest = hashlib.blake2b(repr(tuple(item[camera].shape)).encode(), digest_size=_BYTES)
        digest.update(item[camera].contiguous().numpy().data)
        found[camera] = digest.hexdigest()
    return found


def expect_pixels(path: Path, stored: dict[str, str], source: LeRobotSet, shard: Shard) -> None:
    """Refuse a shard whose frame has other pixels here than when its latents were written.

    Raises:
        ValueError: Naming the shard, the file with the picture, and the frame's number in it.
    """
    for camera, digest in pixels(source, list(stored), shard).items():
        if digest != stored[camera]:
            episode, number = looked_at(source, shard)
            file, first = picture_file(source, camera, episode)
            raise ValueError(
                f"{file}: frame {first + number} decodes to other pixels here than when its latents were written, with "
                f"the same file and the same versions ({decoders(source, [camera])}); write the latents again, into "
                f"another folder than that of {path}"
            )


def _video(backend: str) -> dict[str, str]:
    if backend != "pyav":
        return {"backend": backend, "version": version(backend)}
    libraries: dict[str, Any] = av.library_versions
    versions = {name: ".".join(map(str, libraries[name])) for name in _LIBRARIES}
    return {"backend": backend, "version": av.__version__, **versions}
