"""`meta/modality.json`: names for slices of the state and action columns, as GR00T's flavour of the format has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moteur.data.lerobot.info import Info, load_json

MODALITY_FILE = "meta/modality.json"
_DEFAULT_COLUMN = {"state": "observation.state", "action": "action"}


@dataclass(frozen=True)
class Slice:
    """Entries `[start, stop)` of a column."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class Modality:
    """What `modality.json` says.

    Attributes:
        state: Name of a part of the state to its place.
        action: Name of a part of the action to its place.
        video: The set's own short camera name to the column that holds it.
    """

    state: Mapping[str, Slice]
    action: Mapping[str, Slice]
    video: Mapping[str, str]


def read_modality(root: Path, info: Info) -> Modality | None:
    """Read `meta/modality.json`, or return None where there is none.

    Raises:
        ValueError: A part lies outside its column, or a camera's column is not in the set; file and field are named.
    """
    path = root / MODALITY_FILE
    if not path.is_file():
        return None
    raw = load_json(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    video = {
        name: str(_entry(path, f"video.{name}", entry).get("original_key", f"observation.images.{name}"))
        for name, entry in _entry(path, "video", raw.get("video", {})).items()
    }
    for name, key in video.items():
        if key not in info.features or not info.features[key].is_visual:
            raise ValueError(f"{path}: video.{name}.original_key is {key!r}, which is not a camera of this set")
    return Modality(_slices(path, raw, "state", info), _slices(path, raw, "action", info), video)


def _slices(path: Path, raw: dict[str, Any], group: str, info: Info) -> dict[str, Slice]:
    slices: dict[str, Slice] = {}
    for name, value in _entry(path, group, raw.get(group, {})).items():
        entry = _entry(path, f"{group}.{name}", value)
        key = entry.get("original_key") or _DEFAULT_COLUMN[group]
        feature = info.features.get(key) if isinstance(key, str) else None
        if feature is None or not feature.is_numeric:
            raise ValueError(f"{path}: {group}.{name} refers to {key!r}, which is not a numeric column of this set")
        start, stop, size = entry.get("start"), entry.get("end"), feature.shape[0]
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= size):
            raise ValueError(f"{path}: {group}.{name} must lie in 0 <= start < end <= {size}, got {start!r}:{stop!r}")
        slices[name] = Slice(key, start, stop)
    return slices


def _entry(path: Path, name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {name} must be a JSON object, got {value!r:.60}")
    return value
