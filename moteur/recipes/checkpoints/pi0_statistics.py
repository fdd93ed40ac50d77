"""Statistics of robots as the checkpoints of π0 and π0.5 hold them: LeRobot's processors, and openpi's assets."""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moteur import data
from moteur.files import parse, read_json
from moteur.recipes.checkpoints.config_files import cameras_of, read_config
from moteur.recipes.checkpoints.folder import CONFIG
from moteur.recipes.checkpoints.transforms import Statistics, dump_transforms, load_transforms
from moteur.recipes.pi0_config import Pi0Config

_BEFORE, _AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
_ASSETS, _NORM_STATS = "assets", "norm_stats.json"
PI0_PATTERNS = ("policy_preprocessor*", "policy_postprocessor*", f"{_ASSETS}/*{_NORM_STATS}")
"""Files of a Hub repository that statistics are read from."""

ROBOT = "lerobot"
"""Name of the robot of a LeRobot checkpoint, which has none for it."""

_Lists: TypeAlias = Mapping[str, Sequence[float]]
_COLUMNS = {"state": "observation.state", "action": "action"}
_MODES = {"MEAN_STD": "mean_std", "MIN_MAX": "min_max", "QUANTILES": "quantiles", "IDENTITY": "none"}
_EPSILON = 1e-8
_EMPTY = re.compile(r"observation\.images\.empty_camera_\d+")
_NAMES = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
_SPREAD = 3.0  # deviations to either side, where a file states neither extremes nor quantiles


@dataclass(frozen=True)
class _Step:
    __pydantic_config__ = ConfigDict(extra="ignore")

    registry_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    state_file: str | None = None


@dataclass(frozen=True)
class _Pipeline:
    __pydantic_config__ = ConfigDict(extra="ignore")

    steps: tuple[_Step, ...]


@dataclass(frozen=True)
class _Normalisation:
    """Configuration of the step that normalises."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    norm_map: dict[str, str]
    eps: float = _EPSILON


@dataclass(frozen=True)
class _Relative:
    """Configuration of the step that makes actions relative to the state."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    enabled: bool = False
    exclude_joints: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None


_PIPELINE, _NORMALISATION = TypeAdapter(_Pipeline), TypeAdapter(_Normalisation)
_RELATIVE, _RENAMED = TypeAdapter(_Relative), TypeAdapter(dict[str, str])
_ASSET = TypeAdapter(dict[str, dict[str, dict[str, list[float] | None]]])


def openpi_statistics(
    source: str | Path, robot: "data.Robot", *, chunk: int, asset: str | None = None
) -> "data.RobotStatistics":
    """Statistics of a robot from openpi's `norm_stats.json`.

    They are of what openpi normalises, so the robot's schema must make the same of a recording: relative actions and,
    for an ALOHA, `adapt_to_pi`. Numbers beyond the robot's dimensions are left out. The file states no extremes; its
    quantiles stand in for them, or three deviations to either side of the mean.

    Args:
        source: The file, or a checkpoint folder with `assets/<asset>/norm_stats.json`.
        robot: Schema of the robot.
        chunk: Length of the action chunks that the statistics are of.
        asset: Which of the folder's assets, such as "trossen"; needed where there are several.

    Raises:
        ValueError: There is no such file, or it is damaged, or it lacks dimensions of the robot.
    """
    path = Path(source)
    if path.is_dir():
        found = assets_of(path)
        if asset is None and len(found) == 1:
            (asset,) = found
        if asset not in found:
            raise ValueError(f"asset: expected one of {sorted(found)} of {path}, got {asset!r}")
        path = found[asset]
    groups = parse(_ASSET, read_json(path), path, strict=True).get("norm_stats", {})
    try:
        known = {kind: {key: values for key, values in lists.items() if values} for kind, lists in groups.items()}
        state = _field(known.get("state", {}), robot.state_dim)
        action = _field(known.get("actions", {}), robot.action_dim) if robot.action else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return data.RobotStatistics(robot.name, chunk, state, action)


def pi0_statistics(folder: Path, config: Pi0Config) -> tuple[Statistics, tuple[str, ...]]:
    """Statistics beside the weights of a released π0 or π0.5, and notes about those that could not be taken over.

    Raises:
        ValueError: A file is damaged.
    """
    notes = [
        f"statistics of {asset!r} are in {path.relative_to(folder)}: openpi_statistics reads them for a robot's schema"
        for asset, path in assets_of(folder).items()
    ]
    transform, reason = _lerobot_transform(folder, config)
    if reason:
        notes.append(f"statistics in {_BEFORE} were not taken over: {reason}")
    return ({} if transform is None else dump_transforms(transform)), tuple(notes)


def export_statistics(
    source: Path, draft: Path, config: Pi0Config, statistics: Statistics, robots: Collection[str] | None
) -> None:
    """Write statistics in the form in which the original of an export holds them.

    LeRobot's processors are copied, with the numbers of `statistics` in place of theirs if these are others; openpi's
    assets, or those of `robots`, are copied.

    Raises:
        ValueError: The processors cannot say how the robot's data are prepared.
    """
    for asset, path in assets_of(source).items():
        if robots is None or asset in robots:
            (draft / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft / path.relative_to(source))
    original, _ = _lerobot_transform(source, config)
    same = original is None or dump_transforms(original) == statistics
    if same or statistics:
        for path in sorted(each for pattern in PI0_PATTERNS[:2] for each in source.glob(pattern)):
            shutil.copyfile(path, draft / path.name)
    if statistics and original is not None and not same:
        numbers = _numbers(statistics, original)
        for step in [each for path in (source / _BEFORE, source / _AFTER) for each in _steps(path).values()]:
            if step.state_file is not None:
                stored = load_file(source / step.state_file)
                save_file({key: numbers.get(key, value) for key, value in stored.items()}, draft / step.state_file)


def _numbers(statistics: Statistics, original: "data.RobotTransform") -> dict[str, Tensor]:
    """Statistics of a robot as LeRobot's processors store them, if they prepare its data as it wants."""
    ours = [*load_transforms(statistics).values()]
    alike = len(ours) == 1 and (
        replace(ours[0].robot, name=ROBOT) == original.robot
        and (ours[0].mode, ours[0].convention) == (original.mode, original.convention)
        and ours[0].statistics.chunk == original.statistics.chunk
    )
    if not alike:
        raise ValueError(
            "robots: expected the robot of the original with other statistics, which LeRobot's processors can state, "
            f"got {sorted(statistics)}; make processors for it with LeRobot"
        )
    return {
        f"{column}.{name}": torch.tensor(values, dtype=torch.float32)
        for group, column in _COLUMNS.items()
        for name in _NAMES
        if (values := getattr(getattr(ours[0].statistics, group), name)) is not None
    }


def assets_of(folder: Path) -> dict[str, Path]:
    """Files of openpi's statistics, by asset."""
    root = folder / _ASSETS
    return {path.parent.relative_to(root).as_posix(): path for path in sorted(root.rglob(_NORM_STATS))}


def _lerobot_transform(folder: Path, config: Pi0Config) -> "tuple[data.RobotTransform | None, str]":
    """The transform that LeRobot's processors stand for, or None and why; None alone if they hold no statistics."""
    path = folder / _BEFORE
    if not path.is_file():
        return None, ""
    steps = _steps(path)
    stored, used = _stored(folder, steps, "normalizer_processor"), steps.get("normalizer_processor", _Step())
    if not stored.keys() >= {*_COLUMNS.values()}:
        return None, ""
    after = _steps(folder / _AFTER) if (folder / _AFTER).is_file() else {}
    undone = _stored(folder, after, "unnormalizer_processor").get(_COLUMNS["action"], {})
    if undone and any(undone.get(name) != values for name, values in stored[_COLUMNS["action"]].items()):
        return None, f"{_AFTER} holds other ones of the action"
    settings = parse(_NORMALISATION, used.config, f"{path}: {used.registry_name}", strict=True)
    kinds = {settings.norm_map.get(kind, "IDENTITY") for kind in ("STATE", "ACTION")}
    if len(kinds) > 1 or not kinds <= _MODES.keys() or settings.eps != _EPSILON:
        return None, f"{sorted(kinds)} with eps {settings.eps} is no normalisation known here"
    state, action = (
        _field(lists, len(lists.get("mean", ()))) for lists in (stored[column] for column in _COLUMNS.values())
    )
    columns = read_config(folder / CONFIG)
    own = {theirs: ours for ours, theirs in _renamed(path, steps).items()}
    cameras = [None if _EMPTY.fullmatch(name) else own.get(name, name) for name in cameras_of(columns)]
    if not any(cameras):
        return None, f"{CONFIG} names no camera"
    relative = parse(_RELATIVE, steps.get("relative_actions_processor", _Step()).config, path)
    names = relative.action_names
    robot = data.Robot(
        name=ROBOT,
        state=(data.Source(own.get(_COLUMNS["state"], _COLUMNS["state"]), state.dims),),
        action=(data.Source(_COLUMNS["action"], action.dims),),
        cameras=(*cameras, *[None] * (config.views - len(cameras))),
        relative=_runs(relative, action.dims),
        joints=names if names and len(names) == action.dims else None,
    )
    statistics = data.RobotStatistics(ROBOT, config.chunk, state, action)
    mode: Any = _MODES[kinds.pop()]
    return config.transform(robot, statistics, mode=mode, convention="lerobot", images="float32"), ""


def _runs(relative: _Relative, dims: int) -> tuple[int, ...]:
    """Runs of relative and absolute dimensions, as in `Robot.relative`; joints whose name holds a word are absolute."""
    if not relative.enabled:
        return ()
    words = [word.lower() for word in relative.exclude_joints or () if word]
    names = [*(relative.action_names or ()), *[""] * dims][:dims]
    mask = [not any(word in name.lower() for word in words) for name in names]
    return tuple((1 if moves else -1) * len(list(run)) for moves, run in groupby(mask))


def _renamed(path: Path, steps: Mapping[str, _Step]) -> dict[str, str]:
    step = steps.get("rename_observations_processor", _Step())
    return parse(_RENAMED, step.config.get("rename_map") or {}, f"{path}: rename_map", strict=True)


def _steps(path: Path) -> dict[str, _Step]:
    """Steps of a pipeline, by the name that LeRobot registers them under."""
    steps = parse(_PIPELINE, read_json(path), path).steps
    return {step.registry_name: step for step in steps if step.registry_name is not None}


def _stored(folder: Path, steps: Mapping[str, _Step], name: str) -> dict[str, dict[str, list[float]]]:
    """Statistics that a step holds: column to name of a statistic to numbers."""
    step, found = steps.get(name, _Step()), dict[str, dict[str, list[float]]]()
    if step.state_file is None:
        return found
    path = folder / step.state_file
    if Path(step.state_file).name != step.state_file or not path.is_file():
        raise ValueError(f"{path}: expected the statistics of {name}, got no such file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged or other one ({error})") from error
    for key, tensor in tensors.items():
        column, _, statistic = key.rpartition(".")
        found.setdefault(column, {})[statistic] = tensor.double().reshape(-1).tolist()
    return found


def _field(lists: _Lists, dims: int) -> "data.FieldStatistics":
    """Statistics of the first `dims` dimensions; what a file leaves out is None, or stands in for the extremes."""
    given: dict[str, Any] = {name: tuple(map(float, lists[name][:dims])) for name in _NAMES if lists.get(name)}
    for name in ("mean", "std"):
        if len(given.get(name, ())) != dims or not dims:
            raise ValueError(f"{name}: expected {max(dims, 1)} numbers, got {len(given.get(name, ()))}")
    for end, quantile, sign in (("min", "q01", -1), ("max", "q99", 1)):
        far = [mean + sign * _SPREAD * std for mean, std in zip(given["mean"], given["std"], strict=True)]
        given[end] = given.get(end) or given.get(quantile) or tuple(far)
    return data.FieldStatistics(int(next(iter(lists.get("count", ())), 0)), **given)
