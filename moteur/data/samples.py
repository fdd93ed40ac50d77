"""From an item of a set to a training sample, and from a predicted chunk back to commands for the robot."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from moteur.data.images import resize_with_pad
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import INFO_FILE, read_info
from moteur.data.lerobot.open_files import BoundedCache
from moteur.data.lerobot.video import Backend
from moteur.data.normalize import Mode, Normalizer
from moteur.data.robot import Robot, Source
from moteur.data.statistics import RobotStatistics
from moteur.data.window import Window

Sample = dict[str, Any]


class Preparation:
    """Prepares samples of one robot, in the released order.

    Relative actions, frames resized with padding, three views with the missing ones masked, normalisation,
    concatenation, padding. Numbers are computed in float64 and handed out in float32.

    A sample holds (sizes for the defaults):

    | key | type | |
    |---|---|---|
    | `images` | uint8 (view, time, 3, 224, 224) | white where the camera is missing |
    | `view_valid` | bool (view) | False for a camera that the robot does not have |
    | `frame_valid` | bool (view, time) | False also where the time lies outside the episode |
    | `state` | float32 (32) | normalised, zeros beyond the robot's dimensions |
    | `valid_state_dims` | bool (32) | |
    | `actions` | float32 (50, 32) | relative, normalised, zeros beyond |
    | `valid_steps` | bool (50) | False past the end of the episode |
    | `valid_dims` | bool (32) | False beyond the robot's action dimensions |
    | `valid_sample` | bool () | False without actions |
    | `task`, `robot` | text | |

    Args:
        robot: The schema.
        statistics: The robot's statistics.
        window: Times of the frames, length of the chunk.
        size: Side of the square frames in pixels.
        dims: Width that state and actions are padded to.
        mode: Normalisation.
        images: `"uint8"` rounds resized frames to bytes, an error of at most 1/510, and none for frames that have the
            right size already; `"float32"` keeps them as the released code has them, four times as large.

    Raises:
        ValueError: Robot, statistics, window and `dims` do not fit each other, or an option is not one of those above.
    """

    def __init__(
        self,
        robot: Robot,
        statistics: RobotStatistics,
        *,
        window: Window | None = None,
        size: int = 224,
        dims: int = 32,
        mode: Mode = "mean_std",
        images: Literal["uint8", "float32"] = "uint8",
    ) -> None:
        if images not in ("uint8", "float32"):
            raise ValueError(f"images: expected 'uint8' or 'float32', got {images!r}")
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self.robot, self.statistics, self.window = robot, statistics, window or Window()
        self.size, self.dims, self.mode, self.images = size, dims, mode, images
        known = (statistics.robot, statistics.state.dims, statistics.action.dims if statistics.action else 0)
        if known != (robot.name, robot.state_dim, robot.action_dim):
            expected = (robot.name, robot.state_dim, robot.action_dim)
            raise ValueError(f"statistics are of robot, state and action sizes {known}, expected {expected}")
        _check_entries("state", statistics.state.entries, robot.state_entries)
        if statistics.action:
            _check_entries("action", statistics.action.entries, robot.action_entries)
        if robot.action and statistics.steps != self.window.steps:
            raise ValueError(
                f"statistics are over chunks of {statistics.steps} steps, the window has {self.window.steps}"
            )
        if max(robot.state_dim, robot.action_dim) > dims:
            raise ValueError(f"dims is {dims}, {robot.name!r} needs {max(robot.state_dim, robot.action_dim)}")
        self._state = Normalizer(statistics.state, mode=mode)
        self._action = Normalizer(statistics.action, mode=mode, hold=True) if statistics.action else None
        self._relative = torch.tensor(robot.relative_mask, dtype=torch.bool)

    def __call__(self, item: Mapping[str, Any]) -> Sample:
        """Prepare an item of a set that was opened with this window's offsets.

        Raises:
            ValueError: A state or an action is not finite; the column is named.
        """
        state = self._joined(item, self.robot.state, rows=1)[0]
        return (
            self._views(item)
            | {"state": self.state(state), "valid_state_dims": self._first(self.robot.state_dim)}
            | self._actions(item, state)
            | {"task": item["task"], "robot": self.robot.name}
        )

    def state(self, state: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch dims"]:
        """Normalise and pad the robot's own state."""
        return self._padded(self._state(state))

    def commands(
        self, actions: Float[Tensor, "*batch step dims"], state: Float[Tensor, "*batch state"]
    ) -> Float64[Tensor, "*batch step action"]:
        """Turn a predicted chunk into absolute actions in the robot's own units.

        Args:
            actions: Normalised and padded, as the model predicts them.
            state: The robot's own state at the time the chunk was predicted from; relative dimensions are added to it,
                for every step of the chunk.

        Raises:
            ValueError: The robot has no actions.
        """
        if self._action is None:
            raise ValueError(f"robot {self.robot.name!r} has no actions")
        real = self._action.inverse(actions[..., : self.robot.action_dim])
        return real + self._anchor(state).unsqueeze(-2)

    def resize(self, frames: UInt8[Tensor, "time 3 height width"]) -> Tensor:
        """Fit frames into the square that the model sees, as bytes or as floats in [0, 1] (see `images`)."""
        if self.images == "uint8" and tuple(frames.shape[-2:]) == (self.size, self.size):
            return frames
        return self._stored(resize_with_pad(frames.float() / 255, self.size))

    def _views(self, item: Mapping[str, Any]) -> Sample:
        times = len(self.window.frames if self.window.seconds is None else self.window.seconds)
        views: list[Tensor] = []
        valid = torch.zeros(len(self.robot.cameras), times, dtype=torch.bool)
        for view, camera in enumerate(self.robot.cameras):
            if camera is None:
                views.append(self._stored(torch.ones(times, 3, self.size, self.size)))
            else:
                views.append(self.resize(item[camera]))
                valid[view] = ~item[f"{camera}_is_pad"]
        present = torch.tensor([camera is not None for camera in self.robot.cameras])
        return {"images": torch.stack(views), "view_valid": present, "frame_valid": valid}

    def _actions(self, item: Mapping[str, Any], state: Tensor) -> Sample:
        steps = self.window.steps
        actions, valid = torch.zeros(steps, self.dims), torch.zeros(steps, dtype=torch.bool)
        if self._action is not None:
            relative = self._joined(item, self.robot.action, rows=steps) - self._anchor(state)
            actions = self._padded(self._action(relative))
            valid = ~torch.stack([item[f"{source.key}_is_pad"] for source in self.robot.action]).any(dim=0)
        return {
            "actions": actions,
            "valid_steps": valid,
            "valid_dims": self._first(self.robot.action_dim),
            "valid_sample": torch.tensor(self._action is not None),
        }

    def _anchor(self, state: Tensor) -> Tensor:
        """What relative dimensions are relative to, zero for absolute ones."""
        missing = max(self.robot.action_dim - self.robot.state_dim, 0)
        reference = F.pad(state.double(), (0, missing))[..., : self.robot.action_dim]
        return torch.where(self._relative.to(state.device), reference, 0.0)

    def _joined(self, item: Mapping[str, Any], sources: tuple[Source, ...], rows: int) -> Float64[Tensor, "row dim"]:
        parts: list[Tensor] = []
        for source in sources:
            value: Tensor = item[source.key]
            windowed = f"{source.key}_is_pad" in item
            # A column that is both state and action comes as a window; its first row is the present frame.
            table = value.reshape(len(value), -1)[:rows] if windowed else value.reshape(1, -1)
            part = table[:, source.start : source.start + source.size].double()
            if not torch.isfinite(part).all():
                found = part[~torch.isfinite(part)].tolist()
                raise ValueError(f"column {source.key!r}: expected finite numbers, got {len(found)} such as {found[0]}")
            parts.append(part)
        return torch.cat(parts, dim=1) if parts else torch.zeros(rows, 0, dtype=torch.float64)

    def _stored(self, frames: Tensor) -> Tensor:
        return (frames * 255).round().to(torch.uint8) if self.images == "uint8" else frames

    def _padded(self, values: Tensor) -> Tensor:
        return F.pad(values.float(), (0, self.dims - values.shape[-1]))

    def _first(self, count: int) -> Bool[Tensor, " dims"]:
        return torch.arange(self.dims) < count


def _check_entries(group: str, found: tuple[str, ...] | None, expected: tuple[str, ...]) -> None:
    """Statistics that say what they are of must be of what the schema reads; files from elsewhere do not say."""
    for place, (theirs, ours) in enumerate(zip(found or (), expected, strict=False)):
        if theirs != ours:
            raise ValueError(f"statistics are of {theirs!r} as {group} dimension {place}, the schema says {ours!r}")


class RobotDataset:
    """Prepared samples of one set: a map-style dataset.

    Args:
        root: Folder of the set; its `info.json` is checked against the robot's schema.
        preparation: How to prepare samples.
        episodes: Numbers of the episodes to use, in this order; all if not given.
        backend: Video decoder, `"pyav"` or `"torchcodec"`, see `LeRobotSet`.
        videos: Shared cache of open videos, see `LeRobotSet`.
        tables: Shared cache of decoded tables, see `LeRobotSet`.

    Raises:
        FileNotFoundError: A file of the set is missing.
        ValueError: The set is damaged, or does not fit the robot.
    """

    def __init__(
        self,
        root: Path | str,
        preparation: Preparation,
        *,
        episodes: Sequence[int] | None = None,
        backend: Backend | None = None,
        videos: BoundedCache | None = None,
        tables: BoundedCache | None = None,
    ) -> None:
        info, robot, window = read_info(Path(root)), preparation.robot, preparation.window
        robot.check(info, Path(root))
        try:
            times = window.frame_offsets(info.fps)
        except ValueError as error:
            raise ValueError(f"{Path(root) / INFO_FILE} does not fit the window: {error}") from error
        offsets = {camera: times for camera in robot.cameras if camera}
        offsets |= {source.key: tuple(range(window.steps)) for source in robot.action}
        self.preparation = preparation
        self._reading: dict[str, Any] = {"episodes": episodes, "backend": backend, "videos": videos, "tables": tables}
        self.source = LeRobotSet(root, offsets=offsets, keys=robot.keys, **self._reading)

    def of_the_present(self) -> "RobotDataset":
        """The same samples with the present frame alone, through the same caches of open files."""
        preparation = copy(self.preparation)
        preparation.window = replace(preparation.window, frames=(0,), seconds=None)
        return RobotDataset(self.source.root, preparation, **self._reading)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Sample:
        item = self.source[position]
        try:
            return self.preparation(item)
        except ValueError as error:
            episode, frame = self.source.locate(position)
            raise ValueError(f"{self.source.root}, episode {episode}, frame {frame}: {error}") from error
