"""What a robot's data mean: which columns make its state, its actions and its three views."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from moteur.data.files import write_whole
from moteur.data.lerobot.info import INFO_FILE, Info, Modality


@dataclass(frozen=True)
class Source:
    """Entries `[start, start + size)` of a column.

    Attributes:
        key: Column of the set.
        size: How many entries; with `start` 0 they must be the whole column.
        start: First entry, for a column that holds more than is wanted.
        part: Whether the column may hold more entries than these.
    """

    key: str
    size: int
    start: int = 0
    part: bool = False


@dataclass(frozen=True)
class Robot:
    """A robot's schema.

    Attributes:
        name: What statistics and messages call it.
        state: Columns that make the proprioceptive state, one after another.
        action: Columns that make the action, one after another; empty for data without actions (human video).
        cameras: Column of each view; None where this robot has no such camera, at any place.
        relative: Runs of action dimensions: a positive number is that many dimensions relative to the state at the
            current frame (same position in state and action), a negative number that many absolute ones.
        robot_types: What `info.json` may call it; empty to accept any name.
        joints: Names of the action dimensions, compared with the set's own names where it has some.
        rate: Control rate in Hz that the sets must have, or None to accept any.

    Raises:
        ValueError: The parts do not fit together; the field is named.

    Example:
        >>> robot = Robot(
        ...     name="mine",
        ...     state=(Source("observation.state", 7),),
        ...     action=(Source("action", 7),),
        ...     cameras=("observation.images.front", None, "observation.images.wrist"),
        ...     relative=(6, -1),
        ... )
        >>> robot.relative_mask
        (True, True, True, True, True, True, False)
        >>> Robot.from_dict(robot.to_dict()) == robot
        True
    """

    name: str
    state: tuple[Source, ...]
    action: tuple[Source, ...]
    cameras: tuple[str | None, ...]
    relative: tuple[int, ...] = ()
    robot_types: tuple[str, ...] = ()
    joints: tuple[str, ...] | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        for group in ("state", "action"):
            for source in getattr(self, group):
                if source.size < 1 or source.start < 0:
                    raise ValueError(f"{group} of {self.name!r}: {source.key} needs size > 0 and start >= 0")
        if self.relative and sum(abs(run) for run in self.relative) != self.action_dim:
            raise ValueError(f"relative of {self.name!r}: runs {self.relative} must cover {self.action_dim} dimensions")
        if any(self.relative_mask[self.state_dim :]):
            raise ValueError(
                f"relative of {self.name!r}: a relative dimension lies past the {self.state_dim} of the state"
            )
        if not any(self.cameras):
            raise ValueError(f"cameras of {self.name!r}: at least one view is needed, got {self.cameras}")
        if self.joints is not None and len(self.joints) != self.action_dim:
            raise ValueError(f"joints of {self.name!r}: expected {self.action_dim} names, got {len(self.joints)}")

    @property
    def state_dim(self) -> int:
        """Number of state dimensions."""
        return sum(source.size for source in self.state)

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return sum(source.size for source in self.action)

    @property
    def relative_mask(self) -> tuple[bool, ...]:
        """True for action dimensions that are relative to the state; all absolute if `relative` is empty."""
        runs = self.relative or (-self.action_dim,)
        return tuple(run > 0 for run in runs for _ in range(abs(run)))

    @property
    def state_entries(self) -> tuple[str, ...]:
        """What each state dimension is: `column[entry]`."""
        return tuple(f"{source.key}[{source.start + place}]" for source in self.state for place in range(source.size))

    @property
    def action_entries(self) -> tuple[str, ...]:
        """What each action dimension is: `column[entry]`, where it is relative with `- column[entry]` of the state."""
        names = [f"{source.key}[{source.start + place}]" for source in self.action for place in range(source.size)]
        for place, relative in enumerate(self.relative_mask):
            if relative:
                names[place] += f" - {self.state_entries[place]}"
        return tuple(names)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every column that is needed, once."""
        sources = [source.key for source in (*self.state, *self.action)]
        return tuple(dict.fromkeys([*sources, *(camera for camera in self.cameras if camera)]))

    def check(self, info: Info, root: Path | None = None) -> None:
        """Refuse a set that this schema does not describe.

        Args:
            info: The set's `info.json`.
            root: Folder of the set, for the message.

        Raises:
            ValueError: With every mismatch, each naming the field of `info.json`.
        """
        found = [*self._source_mismatches(info), *self._camera_mismatches(info)]
        if self.robot_types and info.robot_type not in self.robot_types:
            found.append(f"robot_type is {info.robot_type!r}, expected one of {list(self.robot_types)}")
        if self.rate is not None and info.fps != self.rate:
            found.append(f"fps is {info.fps}, expected {self.rate}")
        if found:
            path = "info.json" if root is None else root / INFO_FILE
            raise ValueError(f"{path} does not fit robot {self.name!r}: " + "; ".join(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain values, for JSON, YAML or a checkpoint."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Any) -> "Robot":  # noqa: ANN401  # whatever a file held
        """Build a schema from plain values.

        Raises:
            ValueError: A field is missing or unknown, or a text instead of a list.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"not a robot schema: expected a mapping, got {type(values).__name__}")
        fields: dict[str, Any] = {"state": (), "action": (), **values}
        try:
            for group in ("state", "action"):
                fields[group] = tuple(Source(**source) for source in fields[group])
            if fields.get("joints") is None:
                fields.pop("joints", None)
            for group in ("cameras", "relative", "robot_types", "joints"):
                if group not in fields:
                    continue
                if isinstance(fields[group], str):
                    raise ValueError(f"not a robot schema: {group} must be a list, got {fields[group]!r}")
                fields[group] = tuple(fields[group])
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a robot schema: {error}") from error

    def save(self, path: Path) -> None:
        """Write the schema as YAML or JSON, by the file's suffix; a killed process leaves the old file.

        YAML comes with PyYAML, which huggingface_hub, a core dependency, already brings.
        """
        plain = self.to_dict()
        text = json.dumps(plain, indent=2) if _is_json(path) else yaml.safe_dump(plain, sort_keys=False)
        write_whole(path, text)

    @classmethod
    def load(cls, path: Path) -> "Robot":
        """Read a schema from YAML or JSON, by the file's suffix.

        Raises:
            ValueError: The file is damaged, or is not a schema; the file is named.
        """
        text = path.read_text(encoding="utf-8")
        try:
            return cls.from_dict(json.loads(text) if _is_json(path) else yaml.safe_load(text))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {error}") from error

    def _source_mismatches(self, info: Info) -> list[str]:
        found: list[str] = []
        for group in ("state", "action"):
            for source in getattr(self, group):
                feature, end = info.features.get(source.key), source.start + source.size
                if feature is None or not feature.is_numeric:
                    found.append(f"features has no numeric column {source.key!r} for the {group}")
                elif len(feature.shape) != 1 or end > feature.shape[0] or (not source.part and end != feature.shape[0]):
                    found.append(
                        f"features[{source.key!r}].shape is {feature.shape}, expected ({end},) for the {group}"
                    )
        labels = [info.features[source.key].labels for source in self.action if source.key in info.features]
        if self.joints is not None and not found and all(labels):
            parts = zip(self.action, labels, strict=True)
            names = tuple(name for source, part in parts for name in (part or ())[source.start :][: source.size])
            if names != self.joints:
                found.append(f"names of the action are {names}, expected {self.joints}")
        return found

    def _camera_mismatches(self, info: Info) -> list[str]:
        pictures = [key for key, feature in info.features.items() if feature.is_visual]
        return [
            f"features has no camera {camera!r}, only {pictures}"
            for camera in self.cameras
            if camera is not None and camera not in pictures
        ]


def robot_from_modality(
    name: str, modality: Modality, info: Info, *, cameras: Sequence[str | None], relative: Sequence[int] = ()
) -> Robot:
    """Build a schema from a set's `modality.json`: its parts of state and action in the file's order.

    Args:
        name: What to call the robot.
        modality: What the set's `modality.json` says.
        info: The set's `info.json`.
        cameras: Short camera names of the file for each view, None for a missing one.
        relative: As in `Robot`.

    Raises:
        ValueError: A camera is not in the file.
    """
    unknown = [camera for camera in cameras if camera is not None and camera not in modality.video]
    if unknown:
        raise ValueError(f"cameras {unknown} are not in modality.json, which has {list(modality.video)}")
    groups = [
        tuple(
            Source(place.key, place.stop - place.start, place.start, part=True)
            for place in getattr(modality, group).values()
        )
        for group in ("state", "action")
    ]
    views = tuple(None if camera is None else modality.video[camera] for camera in cameras)
    types = () if info.robot_type is None else (info.robot_type,)
    return Robot(name, groups[0], groups[1], views, tuple(relative), types)


def _is_json(path: Path) -> bool:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"path must end in .json, .yaml or .yml, got {path.name!r}")
    return path.suffix == ".json"
