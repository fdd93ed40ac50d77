"""Training samples: the window of times around one moment, its frames, state and actions, and the way to commands."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, UInt8
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor
from torch.utils.data import default_collate

from moteur.data.aloha import actions_from_pi, actions_to_pi, state_to_pi
from moteur.data.convention import Convention
from moteur.data.images import as_unit_floats, resize_with_pad
from moteur.data.robot import Robot, Source
from moteur.data.statistics import Mode, Normalizer, RobotStatistics
from moteur.files import parse, schema_of_fields

_TIMES = 3
_TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True)
class Window:
    """Offsets of the history, present and future frame, and the length of the action chunk.

    Attributes:
        offsets: Frame offsets of history (negative), present (0) and future (positive); `(0,)` for the present alone.
        seconds: The same in seconds, instead of `offsets`: one horizon for robots of different rates.
        chunk: Length of the action chunk; step 0 is the action of the present frame.

    Raises:
        ValueError: The chunk is empty, or the offsets are others than these.

    Examples:
        >>> Window(seconds=(-0.5, 0.0, 0.5)).frame_offsets(fps=30)
        (-15, 0, 15)
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    offsets: tuple[int, ...] = (-15, 0, 15)
    seconds: tuple[float, ...] | None = None
    chunk: int = 50

    def __post_init__(self) -> None:
        parse(_FIELDS, asdict(self), strict=True)
        if self.chunk < 1:
            raise ValueError(f"chunk: expected at least 1, got {self.chunk}")
        name, times = ("offsets", self.offsets) if self.seconds is None else ("seconds", self.seconds)
        if times != (0,) and not (len(times) == _TIMES and times[0] < times[1] == 0 < times[2]):
            raise ValueError(f"{name}: expected a time before 0, 0 and a time after it, or (0,) alone, got {times}")

    @property
    def num_times(self) -> int:
        """Number of frames: 3, or 1 for the present alone."""
        return len(self.offsets if self.seconds is None else self.seconds)

    def frame_offsets(self, fps: int) -> tuple[int, ...]:
        """Offsets in frames for a set of this rate; seconds must be multiples of the frame time to within 0.1 ms."""
        if self.seconds is None:
            return self.offsets
        offsets = tuple(round(value * fps) for value in self.seconds)
        for value, offset in zip(self.seconds, offsets, strict=True):
            if abs(value - offset / fps) > _TOLERANCE_SECONDS:
                raise ValueError(f"seconds: expected multiples of the frame time 1/{fps} s, got {value}")
        return offsets

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        plain: dict[str, Any] = {"offsets": list(self.offsets), "chunk": self.chunk}
        return plain if self.seconds is None else plain | {"seconds": list(self.seconds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Window":
        """Build a window from plain values; what is left out is the default, and an error names the field."""
        return parse(_WINDOW, values, "window")


_WINDOW, _FIELDS = TypeAdapter(Window), schema_of_fields(Window)


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """What a model learns from one moment of an episode, or from a batch of them.

    Tensors of a batch have a leading axis `batch`, and `instruction` and `robot` are lists.

    Attributes:
        frames: Pictures of every view at the window's times, uint8 or floats in [0, 1]; white for a missing camera.
            With latents, those of the present alone.
        view_valid: True for the cameras that the robot has.
        frame_valid: True where the camera exists and the time lies inside the episode. Of all times of the window, also
            where latents stand in for frames.
        state: Proprioceptive state at the present, normalised, zeros beyond the robot's dimensions.
        valid_state_dims: True for the robot's state dimensions.
        actions: The chunk from the present on: relative to the state where the schema says so, normalised, zeros beyond
            the robot's dimensions.
        valid_steps: True for steps inside the episode.
        valid_dims: True for the robot's action dimensions.
        valid_sample: True if there are actions at all.
        instruction: The task in words.
        robot: Name of the robot's schema.
        latents: Cached latents of history and present, instead of their frames.
        future_latents: Cached latents of the future.
    """

    frames: UInt8[Tensor, "*batch view time 3 size size"] | Float[Tensor, "*batch view time 3 size size"]
    view_valid: Bool[Tensor, "*batch view"]
    frame_valid: Bool[Tensor, "*batch view times"]
    state: Float[Tensor, "*batch dims"]
    valid_state_dims: Bool[Tensor, "*batch dims"]
    actions: Float[Tensor, "*batch step dims"]
    valid_steps: Bool[Tensor, "*batch step"]
    valid_dims: Bool[Tensor, "*batch dims"]
    valid_sample: Bool[Tensor, "*batch"]
    instruction: str | list[str]
    robot: str | list[str]
    latents: Float[Tensor, "*batch view 2 channel rows columns"] | None = None
    future_latents: Float[Tensor, "*batch view channel rows columns"] | None = None

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        told = [
            f"{name}={f'{value.dtype} {tuple(value.shape)}' if isinstance(value, Tensor) else repr(value)}"
            for name, value in values
            if value is not None
        ]
        return f"Sample({', '.join(told)})"

    @classmethod
    def stack(cls, samples: Sequence["Sample"]) -> "Sample":
        """Stack samples into a batch. Robots may be mixed: each sample carries its own masks."""
        if not samples:
            raise ValueError("samples: expected at least one, got none")
        batch: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(sample, field.name) for sample in samples]
            kinds = {tuple(value.shape) if isinstance(value, Tensor) else type(value) for value in values}
            if len(kinds) > 1:
                raise ValueError(f"samples: expected {field.name} of one shape, got {sorted(kinds, key=str)}")
            batch[field.name] = None if values[0] is None else values
            if isinstance(values[0], Tensor):  # in a loader's worker, default_collate stacks into shared memory
                batch[field.name] = default_collate(values)
        return cls(**batch)


class RobotTransform:
    """Converts between what a robot has and what a model sees.

    For training, an item of a set becomes a `Sample`, in the released order: joints in π's units where the schema says
    so, relative actions, frames resized with padding, views with the missing ones masked, normalisation, concatenation,
    padding. For acting, `state` normalises the robot's state and `commands` turns a predicted chunk into the robot's
    commands. Numbers are computed in float64; a sample holds float32.

    Args:
        robot: The schema.
        statistics: The robot's statistics.
        window: Times of the frames and length of the chunk. Default: frames of t-15, t and t+15, and the chunk length
            of the statistics.
        size: Side of the square frames in pixels.
        dims: Width that state and actions are padded to.
        mode: Normalisation: by mean and deviation, by range, by the 1 % and 99 % quantiles, or none.
        convention: Whose resizing and normalisation these are, see `resize_with_pad` and the data contract.
        images: `"uint8"` rounds resized frames to bytes: an error of at most 1/510, and none for frames that have the
            right size already. `"float32"` keeps them as floats, as the released code does, four times as large.

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
        convention: Convention = "internvla_a1",
        images: Literal["uint8", "float32"] = "uint8",
    ) -> None:
        if images not in ("uint8", "float32"):
            raise ValueError(f"images: expected 'uint8' or 'float32', got {images!r}")
        self.robot, self.statistics, self.window = robot, statistics, window or Window(chunk=statistics.chunk)
        self.size, self.dims, self.mode, self.images = size, dims, mode, images
        self.convention: Convention = convention
        self._check_statistics()
        needed = max(robot.state_dim, robot.action_dim)
        if needed > dims:
            raise ValueError(f"dims: expected at least {needed}, as robot {robot.name!r} has, got {dims}")
        self._state = Normalizer(statistics.state, mode=mode, convention=convention)
        self._action: Normalizer | None = None
        if statistics.action is not None:
            self._action = Normalizer(statistics.action, mode=mode, convention=convention, hold=True)
        self._relative = torch.tensor(robot.relative_mask, dtype=torch.bool)

    def __repr__(self) -> str:
        mode = self.mode if self.convention == "internvla_a1" else f"{self.mode} of {self.convention}"
        return (
            f"RobotTransform({self.robot.name!r}, {self.robot.state_dim} state and {self.robot.action_dim} action "
            f"dimensions of {self.dims}, {self.window}, frames {self.size} x {self.size} {self.images}, {mode})"
        )

    def __call__(self, item: Mapping[str, Any]) -> Sample:
        """Make a sample of an item of a set that was opened with this window's offsets."""
        state = self._own_state(self._joined(item, self.robot.state, rows=1)[0])
        chunk = self.window.chunk
        actions, valid_steps = torch.zeros(chunk, self.dims), torch.zeros(chunk, dtype=torch.bool)
        if self._action is not None:
            recorded = self._joined(item, self.robot.action, rows=chunk)
            relative = (actions_to_pi(recorded) if self.robot.adapt_to_pi else recorded) - self._anchor(state)
            _check_finite("action", relative, self.robot.action_entries)
            actions = self._padded("action", self._action(relative))
            valid_steps = ~torch.stack([item[f"{source.key}_is_pad"] for source in self.robot.action]).any(dim=0)
        present = torch.tensor([camera is not None for camera in self.robot.cameras])
        times = len(next(item[f"{camera}_is_pad"] for camera in self.robot.cameras if camera))
        views = [self.resize(torch.full((times, 3, self.size, self.size), 255, dtype=torch.uint8))] * len(present)
        frame_valid = torch.zeros(len(present), times, dtype=torch.bool)
        for view, camera in enumerate(self.robot.cameras):
            if camera is not None:
                views[view] = self.resize(item[camera])
                frame_valid[view] = ~item[f"{camera}_is_pad"]
        return Sample(
            frames=torch.stack(views),
            view_valid=present,
            frame_valid=frame_valid,
            state=self._padded("state", self._state(state)),
            valid_state_dims=torch.arange(self.dims) < self.robot.state_dim,
            actions=actions,
            valid_steps=valid_steps,
            valid_dims=torch.arange(self.dims) < self.robot.action_dim,
            valid_sample=torch.tensor(self._action is not None),
            instruction=item["task"],
            robot=self.robot.name,
        )

    def resize(
        self, frames: UInt8[Tensor, "*lead 3 height width"]
    ) -> UInt8[Tensor, "*lead 3 size size"] | Float[Tensor, "*lead 3 size size"]:
        """Fit frames into the square that the model sees, as bytes or floats in [0, 1] (see `images`)."""
        given = frames if self.images == "uint8" else as_unit_floats(frames)
        return resize_with_pad(given, self.size, convention=self.convention)

    def state(self, state: Tensor | np.ndarray | Sequence[float]) -> Float[Tensor, "*batch dims"]:
        """Normalise and pad the robot's own state, (state_dim) or (batch, state_dim), in the robot's units."""
        return self._padded("state", self._state(self._own_state(state)))

    def commands(
        self, actions: Tensor | np.ndarray, state: Tensor | np.ndarray | Sequence[float]
    ) -> Float64[Tensor, "*batch step action"]:
        """Turn a predicted chunk into absolute actions in the robot's own units.

        Args:
            actions: (step, dims) or (batch, step, dims), normalised and padded, as the model predicts them.
            state: The robot's own state that the chunk was predicted from, (state_dim) or (batch, state_dim); relative
                dimensions are added to it, at every step of the chunk.

        Raises:
            ValueError: The robot has no actions, a width is not that of the robot, there is not one state for each
                chunk, or a number or command is not finite.
        """
        if self._action is None:
            raise ValueError(f"actions: expected a robot with actions, got {self.robot.name!r}, which has none")
        predicted, width = _as_float64(actions), self.robot.action_dim
        if predicted.shape[-1] < width:
            raise ValueError(f"actions: expected at least {width} dimensions, got {predicted.shape[-1]}")
        _check_finite("actions", predicted[..., :width], self.robot.joints or self.robot.action_entries)
        anchor = self._anchor(self._own_state(state)).to(predicted.device)
        if anchor.ndim > 1 and anchor.shape[:-1] != predicted.shape[:-2]:
            lead, found = tuple(predicted.shape[:-2]), tuple(anchor.shape[:-1])
            raise ValueError(f"state: expected one, or one for each chunk of a batch {lead}, got a batch {found}")
        commands = self._action.inverse(predicted[..., :width]) + anchor.unsqueeze(-2)
        commands = actions_from_pi(commands) if self.robot.adapt_to_pi else commands
        _check_finite("commands", commands, self.robot.joints or self.robot.action_entries)
        return commands

    def _own_state(self, state: Tensor | np.ndarray | Sequence[float]) -> Float64[Tensor, "*batch state"]:
        values, width = _as_float64(state), self.robot.state_dim
        if values.ndim == 0 or values.shape[-1] != width:
            shape, name = tuple(values.shape), self.robot.name
            raise ValueError(f"state: expected the {width} dimensions of robot {name!r} last, got shape {shape}")
        _check_finite("state", values, self.robot.state_entries)
        return state_to_pi(values) if self.robot.adapt_to_pi else values

    def _check_statistics(self) -> None:
        robot, statistics = self.robot, self.statistics
        state, action = statistics.state, statistics.action
        known = (statistics.robot, state.dims, action.dims if action else 0)
        expected = (robot.name, robot.state_dim, robot.action_dim)
        if known != expected:
            raise ValueError(
                f"statistics: expected those of this robot, state and action size: {expected}, got {known}"
            )
        # Statistics from elsewhere do not say what they are of.
        found = (state.entries or robot.state_entries) + ((action and action.entries) or robot.action_entries)
        for theirs, ours in zip(found, robot.state_entries + robot.action_entries, strict=True):
            if theirs != ours:
                raise ValueError(f"statistics: expected those of {ours!r} in this place, got {theirs!r}")
        if robot.action and statistics.chunk != self.window.chunk:
            expected = f"chunks of {self.window.chunk} steps, as in the window"
            raise ValueError(f"statistics: expected those of {expected}, got {statistics.chunk}")

    def _anchor(self, state: Tensor) -> Tensor:
        """What relative dimensions are relative to, zero for absolute ones."""
        missing = max(self.robot.action_dim - self.robot.state_dim, 0)
        reference = F.pad(state, (0, missing))[..., : self.robot.action_dim]
        return torch.where(self._relative.to(state.device), reference, 0.0)

    def _joined(self, item: Mapping[str, Any], sources: tuple[Source, ...], rows: int) -> Float64[Tensor, "row dim"]:
        parts: list[Tensor] = []
        for source in sources:
            value: Tensor = item[source.key]
            windowed = f"{source.key}_is_pad" in item
            # A column that is both state and action comes as a window; its first row is the present frame.
            table = value.reshape(len(value), -1)[:rows] if windowed else value.reshape(1, -1)
            parts.append(table[:, source.start : source.start + source.size].double())
        return torch.cat(parts, dim=1) if parts else torch.zeros(rows, 0, dtype=torch.float64)

    def _padded(self, name: str, values: Tensor) -> Tensor:
        narrow = values.float()
        if not torch.isfinite(narrow).all():
            most = values.abs().max().item()
            raise ValueError(f"{name}: expected numbers that float32 can hold once normalised, got {most}")
        return F.pad(narrow, (0, self.dims - values.shape[-1]))


def _as_float64(values: Tensor | np.ndarray | Sequence[float]) -> Float64[Tensor, "..."]:
    return values.double() if isinstance(values, Tensor) else torch.tensor(np.asarray(values, dtype=np.float64))


def _check_finite(name: str, values: Float64[Tensor, "*lead dim"], entries: Sequence[str]) -> None:
    wrong = ~torch.isfinite(values)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        value, dim = values[place].item(), place[-1]
        raise ValueError(f"{name}: expected finite numbers, got {value} as dimension {dim} ({entries[dim]})")
