"""Where a v3.0 set keeps its files, and what `info.json` says of a new one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moteur.data.lerobot.encode import CODEC_NAMES, check_encoding
from moteur.data.lerobot.info import BOOKKEEPING, Feature

CHUNKS_SIZE = 1000  # files per chunk folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
SCALARS = {key: Feature("float32" if key == "timestamp" else "int64", (1,)) for key in BOOKKEEPING}
_PICTURE_AXES = ("height", "width", "channels")
_WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_RECORDED = ("bool", *_WHOLE, "float16", "float32", "float64", "string", "image", "video")

Place = tuple[int, int]  # chunk number, file number


def following(place: Place) -> Place:
    """Return the place after this one; a full chunk is followed by the first file of the next."""
    chunk, file = place
    return (chunk + 1, 0) if file + 1 >= CHUNKS_SIZE else (chunk, file + 1)


def numbered(place: Place) -> dict[str, int]:
    """Return a place under the names that templates and episode columns use."""
    return {"chunk_index": place[0], "file_index": place[1]}


def new_info(features: Mapping[str, Feature], *, fps: int, robot_type: str | None) -> dict[str, Any]:
    """`info.json` of a set without episodes."""
    has_videos = any(feature.dtype == "video" for feature in features.values())
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
        "video_path": VIDEO_PATH if has_videos else None,
        "features": {key: _json_feature(feature) for key, feature in (dict(features) | SCALARS).items()},
    }


def described(key: str, feature: Feature, *, fps: int, codec: str, gop: int) -> Feature:
    """Return the feature with the facts about its pictures that `info.json` carries.

    Raises:
        ValueError: The name is LeRobot's own or cannot name a folder, the type cannot be recorded, or the shape is not
            that of a picture, or not one that the encoder takes.
    """
    if key in BOOKKEEPING or "/" in key or key in ("", ".", ".."):
        raise ValueError(f"features may not name {key!r}: it is one of LeRobot's own columns, or not a plain file name")
    if feature.dtype not in _RECORDED:
        raise ValueError(f"features[{key!r}]: dtype must be one of {_RECORDED} to be recorded, got {feature.dtype!r}")
    if feature.dtype == "string" and feature.shape != (1,):
        raise ValueError(f"features[{key!r}]: a string must have shape (1,), got {feature.shape}")
    if not feature.is_visual:
        return feature
    if len(feature.shape) != 3 or feature.shape[2] != 3:  # noqa: PLR2004  # height, width, three colours
        raise ValueError(f"features[{key!r}] must have shape (height, width, 3), got {feature.shape}")
    named = replace(feature, names=list(_PICTURE_AXES))
    if feature.dtype == "image":
        return named
    height, width, channels = feature.shape
    try:
        check_encoding(fps=fps, height=height, width=width, codec=codec, gop=gop)
    except ValueError as error:
        raise ValueError(f"features[{key!r}]: {error}") from error
    size = {"video.height": height, "video.width": width, "video.channels": channels}
    kind = {"video.codec": CODEC_NAMES.get(codec), "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
    return replace(named, video=size | kind | {"video.fps": fps, "video.g": gop, "has_audio": False})


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Name values as columns of the episode index."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _json_feature(feature: Feature) -> dict[str, Any]:
    entry = {"dtype": feature.dtype, "shape": list(feature.shape), "names": feature.names}
    return entry | ({"info": dict(feature.video)} if feature.video else {})
