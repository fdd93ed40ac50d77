"""Robot schemas: the columns of a robot's state and actions, and its cameras."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter

from moteur.data.aloha import ARM
from moteur.data.lerobot.info import BOOKKEEPING, INFO_FILE, Info, Modality
from moteur.files import parse, read_json, schema_of_fields, write_whole

_VIEWS = 3
_ORDER = "view 0 is the head or front camera, view 1 the left or only wrist, view 2 the right wrist"


@dataclass(frozen=True)
class Source:
    """Entries `[start, start + size)` of a column.

    Attributes:
        key: Column of the set.
        size: Number of entries.
        start: First entry.
        part: Whether the column may have more entries after these.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str
    size: Annotated[int, Field(ge=1)]
    start: Annotated[int, Field(ge=0)] = 0
    part: bool = False


@dataclass(frozen=True)
class Robot:
    """Schema of a robot: which columns make its state, its actions and its views.

    The order of `cameras` matters. Released weights were trained with **view 0 the head or front camera, view 1 the
    left wrist, view 2 the right wrist**; a robot with one arm has its wrist camera in view 1 and no view 2.

    Attributes:
        name: Name of the robot; its statistics carry the same.
        state: Columns of the proprioceptive state, in order.
        action: Columns of the action, in order; empty for data without actions, such as videos of people.
        cameras: Column of each view, in the order above; None where the robot has no such camera.
        relative: Runs of action dimensions: a positive number is that many dimensions relative to the state at the
            present frame (same position in state and action), a negative number that many absolute ones. Empty: all
            absolute.
        robot_types: Names that `info.json` may give the robot; empty to accept any.
        joints: Names of the action dimensions, compared with the set's own names where it has some.
        rate: Control rate in Hz that sets must have, or None to accept any.
        adapt_to_pi: The robot is an ALOHA, and the model sees its joints and grippers as π's released weights know
            them: three joints of each arm turn the other way, grippers are angles.

    Raises:
        ValueError: The parts do not fit together; the field is named.

    Examples:
        >>> robot = Robot(
        ...     name="mine",
        ...     state=(Source("observation.state", 7),),
        ...     action=(Source("action", 7),),
        ...     cameras=("observation.images.front", "observation.images.wrist", None),
        ...     relative=(6, -1),
        ... )
        >>> robot.relative_mask
        (True, True, True, True, True, True, False)
        >>> Robot.from_dict(robot.to_dict()) == robot
        True
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    state: tuple[Source, ...]
    action: tuple[Source, ...]
    cameras: tuple[str | None, ...]
    relative: tuple[int, ...] = ()
    robot_types: tuple[str, ...] = ()
    joints: tuple[str, ...] | None = None
    rate: int | None = None
    adapt_to_pi: bool = False

    def __post_init__(self) -> None:
        for field in ("state", "action", "cameras", "relative", "robot_types", "joints"):
            values = getattr(self, field)
            if isinstance(values, Sequence) and not isinstance(values, str):
                object.__setattr__(self, field, tuple(values))
        parse(_FIELDS, asdict(self), strict=True)
        mask = self.relative_mask
        if len(mask) != self.action_dim or any(mask[self.state_dim :]):
            raise ValueError(
                f"relative: expected runs over the {self.action_dim} action dimensions of {self.name!r}, relative ones "
                f"among the {self.state_dim} of its state, got {self.relative}"
            )
        dims = (self.state_dim, self.action_dim)
        if self.adapt_to_pi and not (dims[0] == 2 * ARM and dims[1] in {0, 2 * ARM}):
            raise ValueError(f"adapt_to_pi: expected {2 * ARM} state and action dimensions for True, got {dims}")
        present = [camera for camera in self.cameras if camera is not None]
        if not present or len(set(present)) < len(present):
            raise ValueError(f"cameras: expected at least one, each once ({_ORDER}), got {self.cameras}")
        if self.joints is not None and len(self.joints) != self.action_dim:
            raise ValueError(f"joints: expected {self.action_dim} names of action dimensions, got {self.joints}")

    @classmethod
    def known(cls, name: str | None) -> "Robot":
        """Find a built-in schema, by its name or by the `robot_type` of a set's `info.json`.

        Raises:
            ValueError: No built-in schema has this name; the known ones are listed. There is no default.

        Examples:
            >>> Robot.known("ARX Lift-2").name
            'lift2'
        """
        from moteur.data.known_robots import ROBOTS  # noqa: PLC0415  # they are robots themselves

        for robot in ROBOTS:
            if name in (robot.name, *robot.robot_types):
                return robot
        names = sorted({known for robot in ROBOTS for known in (robot.name, *robot.robot_types)})
        hint = "Robot.from_info(set) makes a first schema of another robot"
        raise ValueError(f"robot: expected one of {names}, got {name!r}; {hint}")

    @classmethod
    def from_info(
        cls,
        source: Info | Path | str,
        name: str | None = None,
        *,
        state: str | Sequence[str] = "observation.state",
        action: str | Sequence[str] = "action",
        cameras: Sequence[str | None] | None = None,
        relative: Sequence[int] = (),
    ) -> "Robot":
        """Make a first schema from a set: what its `info.json` tells, for you to check and complete.

        Check the order of `cameras` (view 0 head or front, view 1 left or only wrist, view 2 right wrist), and set
        `relative` if actions are absolute joint positions.

        Args:
            source: The set: its folder, or its `Info`.
            name: Name of the robot. Default: the set's `robot_type`.
            state: Columns of the state; `()` for none.
            action: Columns of the action; `()` for none.
            cameras: Column of each view, None for a missing one; views that are not named are None. Default: the set's
                first three cameras in its own order.
            relative: As in `Robot`.

        Raises:
            FileNotFoundError: The folder is not a set.
            ValueError: The set has no such columns or cameras, or none at all; or there is no name.
        """
        info = source if isinstance(source, Info) else Info.load(source)
        numeric = {
            key: feature.shape[0]
            for key, feature in info.features.items()
            if feature.is_numeric and len(feature.shape) == 1 and key not in BOOKKEEPING
        }
        groups: list[tuple[Source, ...]] = []
        for field, columns in (("state", state), ("action", action)):
            keys = (columns,) if isinstance(columns, str) else tuple(columns)
            if unknown := [key for key in keys if key not in numeric]:
                raise ValueError(f"{field}: expected columns out of {list(numeric)}, or () for none, got {unknown}")
            groups.append(tuple(Source(key, numeric[key]) for key in keys))
        joints = tuple(label for part in groups[1] for label in info.features[part.key].labels or ())
        pictures = [key for key, feature in info.features.items() if feature.is_visual and not feature.is_depth]
        return cls(
            name=_named(name, info),
            state=groups[0],
            action=groups[1],
            cameras=_views(pictures, cameras),
            relative=tuple(relative),
            robot_types=() if info.robot_type is None else (info.robot_type,),
            joints=joints if joints and len(joints) == sum(part.size for part in groups[1]) else None,
            rate=info.fps,
        )

    @classmethod
    def from_modality(
        cls,
        root: Path | str,
        name: str | None = None,
        *,
        cameras: Sequence[str | None] | None = None,
        relative: Sequence[int] = (),
    ) -> "Robot":
        """Make a schema from a set's `modality.json`: its parts of state and action, in the file's order.

        Args:
            root: Folder of the set.
            name: Name of the robot. Default: the set's `robot_type`.
            cameras: The file's name of the camera of each view, None for a missing one; views that are not named are
                None. Default: the file's first three in its own order.
            relative: As in `Robot`.

        Raises:
            FileNotFoundError: The folder is not a set, or has no `modality.json`.
            ValueError: The file is damaged or names what is not in the set; or there is no name.
        """
        info, modality = Info.load(root), Modality.load(root)
        columns = {name: camera.original_key or f"observation.images.{name}" for name, camera in modality.video.items()}
        short = _views(list(columns), cameras)
        state, action = (
            tuple(
                Source(part.original_key or column, part.end - part.start, part.start, part=True)
                for part in group.values()
            )
            for group, column in ((modality.state, "observation.state"), (modality.action, "action"))
        )
        robot = cls(
            name=_named(name, info),
            state=state,
            action=action,
            cameras=tuple(None if camera is None else columns[camera] for camera in short),
            relative=tuple(relative),
            robot_types=() if info.robot_type is None else (info.robot_type,),
        )
        robot.check(info, Path(root))
        return robot

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
        """True for action dimensions that are relative to the state."""
        runs = self.relative or (-self.action_dim,)
        return tuple(run > 0 for run in runs for _ in range(abs(run)))

    @property
    def state_entries(self) -> tuple[str, ...]:
        """What each state dimension is: `column[entry]`, followed by `in units of π` if it is adapted."""
        return _entries(self.state, in_pi=self.adapt_to_pi)

    @property
    def action_entries(self) -> tuple[str, ...]:
        """What each action dimension is: `column[entry]`, followed by `- column[entry]` of the state if relative."""
        pairs = zip_longest(_entries(self.action, in_pi=self.adapt_to_pi), self.state_entries[: self.action_dim])
        return tuple(
            f"{action} - {state}" if relative else action
            for (action, state), relative in zip(pairs, self.relative_mask, strict=True)
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Every column that is read, once."""
        sources = [source.key for source in (*self.state, *self.action)]
        return tuple(dict.fromkeys([*sources, *(camera for camera in self.cameras if camera)]))

    def check(self, info: Info, root: Path | str | None = None) -> None:
        """Refuse a set that this schema does not describe, with every mismatch and its field of `info.json`."""
        found = self._source_mismatches(info)
        cameras = [key for key, feature in info.features.items() if feature.is_visual]
        if missing := [camera for camera in self.cameras if camera is not None and camera not in cameras]:
            found.append(f"features: expected cameras {missing}, got {cameras} ({_ORDER})")
        if self.robot_types and info.robot_type not in self.robot_types:
            found.append(f"robot_type: expected one of {list(self.robot_types)}, got {info.robot_type!r}")
        if self.rate is not None and info.fps != self.rate:
            found.append(f"fps: expected {self.rate}, got {info.fps}")
        if found:
            path = "info.json" if root is None else Path(root) / INFO_FILE
            raise ValueError(f"{path} does not fit robot {self.name!r}: " + "; ".join(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain values, for JSON, YAML or a checkpoint."""
        values = asdict(self)
        if not self.adapt_to_pi:  # earlier versions do not know the field
            del values["adapt_to_pi"]
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls, values: object) -> "Robot":
        """Build a schema from plain values; an error names the field."""
        return _parsed(values, "robot")

    def save(self, path: Path | str) -> None:
        """Write the schema as YAML or JSON, by the file's suffix, atomically."""
        plain, path = self.to_dict(), Path(path)
        if path.suffix not in (".json", ".yaml", ".yml"):
            raise ValueError(f"path: expected a name that ends in .json, .yaml or .yml, got {path.name!r}")
        is_json = path.suffix == ".json"
        write_whole(path, json.dumps(plain, indent=2) if is_json else yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path: Path | str) -> "Robot":
        """Read a schema, JSON if the file's suffix is `.json`, else YAML; an error names the file and the field."""
        path = Path(path)
        if path.suffix == ".json":
            return _parsed(read_json(path), path)
        try:
            return _parsed(yaml.safe_load(path.read_bytes()), path)
        except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path}: expected YAML, got other text ({error})") from error

    def _source_mismatches(self, info: Info) -> list[str]:
        found: list[str] = []
        numeric = [key for key, feature in info.features.items() if feature.is_numeric and key not in BOOKKEEPING]
        for group, sources in (("state", self.state), ("action", self.action)):
            if missing := [source.key for source in sources if source.key not in numeric]:
                found.append(f"features: expected numeric columns {missing} for the {group}, got {numeric}")
            for source in sources:
                shape = info.features[source.key].shape if source.key in numeric else ()
                end = source.start + source.size
                if shape and (len(shape) != 1 or end > shape[0] or (not source.part and end != shape[0])):
                    found.append(f"features[{source.key!r}].shape: expected ({end},) for the {group}, got {shape}")
        labels = [info.features[source.key].labels for source in self.action if source.key in info.features]
        if self.joints is not None and not found and all(labels):
            parts = zip(self.action, labels, strict=True)
            names = tuple(name for source, part in parts for name in (part or ())[source.start :][: source.size])
            if names != self.joints:
                found.append(f"names of the action: expected {self.joints}, got {names}")
        return found


_SCHEMA, _FIELDS = TypeAdapter(Robot), schema_of_fields(Robot)


def _entries(sources: tuple[Source, ...], *, in_pi: bool) -> tuple[str, ...]:
    units = " in units of π" if in_pi else ""
    return tuple(f"{source.key}[{source.start + place}]{units}" for source in sources for place in range(source.size))


def _parsed(values: object, where: object) -> Robot:
    # State and action may be left out: a schema of cameras alone.
    return parse(_SCHEMA, {"state": (), "action": (), **values} if isinstance(values, Mapping) else values, where)


def _named(name: str | None, info: Info) -> str:
    if name is None and info.robot_type is None:
        raise ValueError("name: expected a name, because the set has no robot_type, got None")
    return name or str(info.robot_type)


def _views(known: Sequence[str], chosen: Sequence[str | None] | None) -> tuple[str | None, ...]:
    """The chosen cameras, or else the first known ones, followed by None up to three views."""
    if isinstance(chosen, str):
        raise ValueError(f"cameras: expected a list of names out of {list(known)}, got {chosen!r}")
    views = tuple(known[:_VIEWS] if chosen is None else chosen)
    if unknown := [camera for camera in views if camera is not None and camera not in known]:
        raise ValueError(f"cameras: expected names out of {list(known)}, got {unknown}")
    return views + (None,) * (_VIEWS - len(views))
