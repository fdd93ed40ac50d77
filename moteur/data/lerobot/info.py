"""`meta/info.json` of a LeRobot set: what it stores, where, and in which version of the format."""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = ("v3.0", "v2.1")
INFO_FILE = "meta/info.json"
# Every set has these columns beside its own features.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_NOT_NUMBERS = ("image", "video", "string", "language")
_LARGEST_COUNT = 2**48
_TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True)
class Feature:
    """One column of a set, as `info.json` declares it.

    Attributes:
        dtype: A numpy dtype name, `"string"`, `"image"`, `"video"` or `"language"`.
        shape: Size of one frame's value; pictures are height, width, channel unless `names` says otherwise.
        names: Names of the entries as the file has them: a list, a list of lists, a mapping to lists, or None.
        video: Facts about the encoding (`info` in the file): codec, pixel format, group-of-pictures length.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    video: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_visual(self) -> bool:
        """Whether the values are pictures."""
        return self.dtype in ("image", "video")

    @property
    def is_numeric(self) -> bool:
        """Whether the values are arrays of numbers (or booleans) in the parquet table."""
        return self.dtype not in _NOT_NUMBERS

    @property
    def is_depth(self) -> bool:
        """Whether a video holds depth instead of colour."""
        return bool(self.video.get("is_depth_map") or self.video.get("video.is_depth_map"))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The entry names as one flat tuple, or None where the set does not name its entries."""
        flat = _flatten_names(self.names)
        return tuple(flat) if flat else None

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Size of the pictures in pixels; older sets put the channel axis first and say so in `names`."""
        first = (self.labels or ("",))[0].lower()
        if first.startswith("channel") or (not first and self.shape[0] == 3 and self.shape[-1] != 3):  # noqa: PLR2004
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1]


@dataclass(frozen=True)
class Info:
    """What `meta/info.json` says; keys this reader does not know are ignored, as LeRobot does.

    Attributes:
        version: `"v3.0"` or `"v2.1"`.
        robot_type: The set's own name for its robot, or None.
        fps: Frames per second, the same for every column.
        episodes: Number of episodes.
        frames: Number of frames over all episodes.
        chunks_size: Files per chunk folder (v3.0) or episodes per chunk folder (v2.1).
        data_path: Template of the parquet files' paths.
        video_path: Template of the video files' paths, or None where there are none.
        features: Column name to `Feature`.
    """

    version: str
    robot_type: str | None
    fps: int
    episodes: int
    frames: int
    chunks_size: int
    data_path: str
    video_path: str | None
    features: Mapping[str, Feature]

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Names of the columns that live in mp4 files."""
        return tuple(key for key, feature in self.features.items() if feature.dtype == "video")


def read_info(root: Path) -> Info:
    """Read and check `meta/info.json` under `root`.

    Raises:
        FileNotFoundError: There is no such file: the folder is not a LeRobot set.
        ValueError: The file is not what it should be; the message names the file, the field, and what was found.
    """
    path = root / INFO_FILE
    if not path.is_file():
        hint = "" if root.exists() else "; one on the Hub is downloaded with fetch(repo_id)"
        raise FileNotFoundError(f"{path}: missing, so {root} is not a LeRobot set{hint}")
    return parse_info(path, load_json(path))


def parse_info(path: Path, raw: object) -> Info:
    """Check the content of an `info.json` at `path`.

    Raises:
        ValueError: It is not what it should be; the message names the file, the field, and what was found.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    check = _Checker(path, raw)
    version = check.text("codebase_version")
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: codebase_version is {version!r}; this reader knows {', '.join(VERSIONS)}. "
            "Older sets are converted with LeRobot's own scripts (v2.0 to v2.1 to v3.0)."
        )
    storage = raw.get("storage_format", "parquet")
    if storage != "parquet":
        raise ValueError(f"{path}: storage_format is {storage!r}; this reader knows only parquet and mp4 files")
    fields = {"chunk_index", "file_index"} if version == "v3.0" else {"episode_chunk", "episode_index"}
    features = _read_features(path, raw.get("features"))
    has_videos = any(feature.dtype == "video" for feature in features.values())
    robot_type = raw.get("robot_type")
    if robot_type is not None and not isinstance(robot_type, str):
        raise ValueError(f"{path}: robot_type must be a string or null, got {robot_type!r}")
    return Info(
        version=version,
        robot_type=robot_type,
        fps=check.count("fps", least=1),
        episodes=check.count("total_episodes"),
        frames=check.count("total_frames"),
        chunks_size=check.count("chunks_size", least=1),
        data_path=check.template("data_path", fields),
        video_path=check.template("video_path", fields | {"video_key"}) if has_videos else None,
        features=features,
    )


def load_json(path: Path) -> Any:  # noqa: ANN401  # a JSON file can hold anything
    """Read a JSON file; errors name the file.

    Raises:
        ValueError: The file is not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


class _Checker:
    """Reads typed fields of one JSON object and words the errors."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self.path, self.raw = path, raw

    def text(self, name: str) -> str:
        value = self.raw.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.path}: {name} must be a string, got {value!r}")
        return value

    def count(self, name: str, *, least: int = 0) -> int:
        value = self.raw.get(name)
        # Some sets store 30.0: an integral float is as good as an integer.
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
        if not least <= number <= _LARGEST_COUNT or number != int(number):
            raise ValueError(f"{self.path}: {name} must be an integer of at least {least}, got {value!r:.60}")
        return int(number)

    def template(self, name: str, fields: set[str]) -> str:
        value = self.text(name)
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            raise ValueError(f"{self.path}: {name} is not a path template: {value!r} ({error})") from error
        for _, field_name, spec, conversion in parts:
            # A width such as {episode_index:999999999d} would fill the memory.
            plain = not conversion and re.fullmatch(r"(0?\d?d)?", spec or "")
            if field_name is not None and (field_name not in fields or not plain):
                raise ValueError(f"{self.path}: {name} may use only {sorted(fields)}, got {value!r}")
        if value.startswith("/") or ".." in Path(value).parts:
            raise ValueError(f"{self.path}: {name} must stay inside the set, got {value!r}")
        return value


def _read_features(path: Path, raw: object) -> dict[str, Feature]:
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{path}: features must be a JSON object with at least one entry, got {raw!r:.60}")
    features = {key: _read_feature(f"{path}: features[{key!r}]", key, entry) for key, entry in raw.items()}
    missing = [key for key in BOOKKEEPING if key not in features]
    if missing:
        raise ValueError(f"{path}: features lacks {missing}, which every LeRobot set has")
    for key in BOOKKEEPING:
        dtype, shape = features[key].dtype, features[key].shape
        whole = features[key].is_numeric and np.dtype(dtype).kind in ("iuf" if key == "timestamp" else "iu")
        if not whole or shape != (1,):
            wanted = "numbers" if key == "timestamp" else "integers"
            raise ValueError(f"{path}: features[{key!r}] must be {wanted} of shape [1], got {dtype} of {list(shape)}")
    return features


def _read_feature(where: str, key: str, entry: Any) -> Feature:  # noqa: ANN401  # a JSON value
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a JSON object, got {entry!r:.60}")
    if not key or "/" in key or key in (".", ".."):
        raise ValueError(f"{where}: a feature name must be a plain file name, without '/'")
    dtype = entry.get("dtype")
    if dtype not in _NOT_NUMBERS and not _is_number_dtype(dtype):
        raise ValueError(f"{where}: dtype must be a numpy number type or one of {_NOT_NUMBERS}, got {dtype!r}")
    shape = entry.get("shape", [1])
    sizes = [size for size in shape if _is_size(size)] if isinstance(shape, list) else []
    if not sizes or len(sizes) != len(shape):
        raise ValueError(f"{where}: shape must be a list of positive integers, got {shape!r:.60}")
    if dtype in ("image", "video") and len(sizes) != 3:  # noqa: PLR2004  # height, width, channel
        raise ValueError(f"{where}: pictures need a shape of three sizes, got {shape!r}")
    details = entry.get("info") or entry.get("video_info") or {}
    if not isinstance(details, dict):
        raise ValueError(f"{where}: info must be a JSON object, got {details!r:.60}")
    return Feature(str(dtype), tuple(sizes), entry.get("names"), details)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number_dtype(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        return np.dtype(name).kind in "biuf" and np.dtype(name).name == name
    except TypeError:
        return False


def _flatten_names(names: object) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [label for entry in names for label in _flatten_names(entry)]
    return []


def frame_offsets(seconds: Sequence[float], fps: int) -> tuple[int, ...]:
    """Turn offsets in seconds into whole frames.

    Raises:
        ValueError: An offset is not a multiple of the frame time to within 0.1 ms.

    Examples:
        >>> frame_offsets([-0.5, 0.0, 0.5], fps=30)
        (-15, 0, 15)
    """
    offsets = tuple(round(value * fps) for value in seconds)
    for value, offset in zip(seconds, offsets, strict=True):
        if abs(value - offset / fps) > _TOLERANCE_SECONDS:
            raise ValueError(f"seconds: {value} is not a multiple of the frame time 1/{fps} s")
    return offsets
