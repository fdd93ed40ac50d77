"""`meta/info.json` and `meta/modality.json` of a LeRobot set: version, frame rate, columns, and where its files are.

Imports without pyarrow and PyAV.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from moteur.files import parse, read_json

VERSIONS = ("v3.0", "v2.1")
INFO_FILE = "meta/info.json"
MODALITY_FILE = "meta/modality.json"
STATS_FILE = "meta/stats.json"
TASKS_FILE = "meta/tasks.parquet"
EPISODES_GLOB = "meta/episodes/chunk-*/file-*.parquet"
# Where a v3.0 set that LeRobot or LeRobotWriter recorded has its files.
CHUNKS_SIZE = 1000  # files per chunk folder
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Every set has these columns beside its own features.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
# Somewhat less than what file systems take, 255 and 4,096: numbers and the set's own folder are added.
_NAME_BYTES, _PATH_BYTES = 200, 2000
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_NUMBERS = ("bool", *_INTEGERS, "float16", "float32", "float64")
_DTYPES = (*_NUMBERS, "image", "video", "string", "language")


def _check_dtype(name: str) -> str:
    if name not in _DTYPES:
        raise ValueError(f"expected one of {_DTYPES}")
    return name


Count = Annotated[
    int,
    # Some sets store 30.0: an integral float is as good as an integer.
    BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value),
    Field(strict=True, ge=0, le=2**48),
]
Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]


@dataclass(frozen=True)
class Feature:
    """One column of a set, as `info.json` declares it.

    Attributes:
        dtype: A numpy dtype name, `"string"`, `"image"`, `"video"` or `"language"`.
        shape: Size of one frame's value; pictures are (height, width, channel) unless `names` says otherwise.
        names: Names of the entries as in the file: a list, a list of lists, a mapping to lists, or None.
        video: Facts about the encoding (`info` in the file): codec, pixel format, distance between key frames.
    """

    dtype: Annotated[str, AfterValidator(_check_dtype)]
    shape: Annotated[tuple[Size, ...], Field(min_length=1)] = (1,)
    names: Any = None
    video: Annotated[Mapping[str, Any], Field(alias="info")] = field(default_factory=dict)

    @property
    def is_visual(self) -> bool:
        """Whether the values are pictures."""
        return self.dtype in ("image", "video")

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers or booleans in the parquet table."""
        return self.dtype in _NUMBERS

    @property
    def is_depth(self) -> bool:
        """Whether a video holds depth instead of colour."""
        return bool(self.video.get("is_depth_map") or self.video.get("video.is_depth_map"))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Entry names as one flat tuple, or None where the set does not name its entries."""
        return tuple(_flatten(self.names)) or None

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Size of the pictures in pixels; older sets put the channel axis first and say so in `names`."""
        first = (self.labels or ("",))[0].lower()
        if first.startswith("channel") or (not first and self.shape[0] == 3 and self.shape[-1] != 3):  # noqa: PLR2004
            return self.shape[1], self.shape[2]
        return self.shape[0], self.shape[1]


def _flatten(names: object) -> list[str]:
    labels, waiting = list[str](), [names]
    while waiting:  # not by recursion, which a deeply nested file would exhaust
        entry = waiting.pop()
        if isinstance(entry, str):
            labels.append(entry)
        elif isinstance(entry, dict | list | tuple):
            waiting += reversed(list(entry.values()) if isinstance(entry, dict) else entry)
    return labels


def _with_encoding(entry: Any) -> Any:  # noqa: ANN401  # a JSON value
    """Older sets say `video_info` for `info`; both may be null."""
    return entry | {"info": entry.get("info") or entry.get("video_info") or {}} if isinstance(entry, dict) else entry


def _check_picture(feature: Feature) -> Feature:
    if feature.is_visual and len(feature.shape) != 3:  # noqa: PLR2004  # height, width, channel
        raise ValueError(f"shape: expected three sizes for a picture, got {list(feature.shape)}")
    return feature


def _check_feature_name(name: str) -> str:
    if not name or "/" in name or name in (".", ".."):
        raise ValueError("expected a feature name without '/'")
    return name


def _check_bookkeeping(features: dict[str, Feature]) -> dict[str, Feature]:
    missing = [key for key in BOOKKEEPING if key not in features]
    if missing:
        raise ValueError(f"expected the columns that every LeRobot set has, got none named {missing}")
    for key in BOOKKEEPING:
        found, kinds = features[key], "iuf" if key == "timestamp" else "iu"
        if not found.is_numeric or np.dtype(found.dtype).kind not in kinds or found.shape != (1,):
            wanted = "a number" if key == "timestamp" else "an integer"
            raise ValueError(f"{key}: expected {wanted} of shape [1], got {found.dtype} of {list(found.shape)}")
    return features


def _check_version(version: str) -> str:
    if version not in VERSIONS:
        raise ValueError(f"expected one of {VERSIONS} (LeRobot's own scripts convert v2.0 to v2.1 to v3.0)")
    return version


@dataclass(frozen=True)
class Info:
    """Contents of `meta/info.json`; keys that are not listed here are ignored, as LeRobot does.

    Attributes:
        version: `"v3.0"` or `"v2.1"` (`codebase_version` in the file).
        robot_type: The set's own name for its robot, or None.
        fps: Frames per second, the same for every column.
        num_episodes: Number of episodes (`total_episodes`).
        num_frames: Number of frames over all episodes (`total_frames`).
        chunks_size: Files per chunk folder (v3.0) or episodes per chunk folder (v2.1).
        data_path: Template of the parquet files' paths.
        video_path: Template of the video files' paths, or None where there are none.
        features: Column name to `Feature`.
        storage_format: Always `"parquet"`.
    """

    version: Annotated[str, Field(alias="codebase_version"), AfterValidator(_check_version)]
    robot_type: Annotated[str | None, Field(default=None)]
    fps: Annotated[Count, Field(ge=1)]
    num_episodes: Annotated[Count, Field(alias="total_episodes")]
    num_frames: Annotated[Count, Field(alias="total_frames")]
    chunks_size: Annotated[Count, Field(ge=1)]
    data_path: str
    video_path: Annotated[str | None, Field(default=None)]
    features: Annotated[
        dict[
            Annotated[str, AfterValidator(_check_feature_name)],
            Annotated[Feature, BeforeValidator(_with_encoding), AfterValidator(_check_picture)],
        ],
        AfterValidator(_check_bookkeeping),
    ]
    storage_format: Literal["parquet"] = "parquet"

    def __post_init__(self) -> None:
        numbers = ("chunk_index", "file_index") if self.version == "v3.0" else ("episode_chunk", "episode_index")
        # A width such as {episode_index:999999999d} would fill the memory.
        number = rf"({'|'.join(numbers)})(:0?\d?d)?"
        templates = {"data_path": (self.data_path, number, str(numbers))}
        if self.video_keys:
            templates["video_path"] = (self.video_path or "", f"{number}|video_key", str((*numbers, "video_key")))
        for name, (template, field_pattern, fields) in templates.items():
            path = re.sub(rf"\{{({field_pattern})\}}", "0", template)
            if not path or "{" in path or "}" in path or path.startswith("/") or ".." in Path(path).parts:
                raise ValueError(
                    f"{name}: expected a path inside the set with the fields {fields}, got {template!r:.300}"
                )
            filled = template.replace("{video_key}", max(self.video_keys, key=len, default=""))
            sizes = [len(part.encode(errors="replace")) for part in Path(filled).parts]
            if max(sizes) > _NAME_BYTES or sum(sizes) > _PATH_BYTES:
                expected = f"names of at most {_NAME_BYTES} bytes, together {_PATH_BYTES}"
                raise ValueError(f"{name}: expected {expected}, got {filled!r:.300}")

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Names of the columns that live in mp4 files."""
        return tuple(key for key, feature in self.features.items() if feature.dtype == "video")

    @classmethod
    def load(cls, root: Path | str) -> "Info":
        """Read and check the file of the set in the folder `root`.

        Raises:
            FileNotFoundError: There is no such file: the folder is not a LeRobot set.
            ValueError: A field is not what it should be: `file: field: expected X, got Y`.
        """
        path = Path(root) / INFO_FILE
        if not path.is_file():
            hint = "" if Path(root).exists() else "; LeRobotSet.download(repo_id) downloads one from the Hub"
            raise FileNotFoundError(f"{path}: missing, so {root} is not a LeRobot set{hint}")
        return parse(INFO_SCHEMA, read_json(path), path)


INFO_SCHEMA = TypeAdapter(Info)


@dataclass(frozen=True)
class Part:
    """Entries `[start, end)` of a column: of `original_key`, or else of `observation.state` or `action`."""

    start: Annotated[int, Field(strict=True, ge=0)]
    end: Annotated[int, Field(strict=True)]
    original_key: str | None = None

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(f"expected start < end, got {self.start} and {self.end}")


@dataclass(frozen=True)
class Camera:
    """A camera in the column `original_key`, or else `observation.images.<its name>`."""

    original_key: str | None = None


@dataclass(frozen=True)
class Modality:
    """Contents of `meta/modality.json`, by which GR00T's flavour of the format names cameras and parts of columns."""

    state: Mapping[str, Part] = field(default_factory=dict)
    action: Mapping[str, Part] = field(default_factory=dict)
    video: Mapping[str, Camera] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path | str) -> "Modality":
        """Read and check the file of the set in the folder `root`."""
        path = Path(root) / MODALITY_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; Robot.from_info makes a schema without it")
        return parse(_MODALITY, read_json(path), path)


_MODALITY = TypeAdapter(Modality)
