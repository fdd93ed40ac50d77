"""Policy: the robot's pictures, its state and a sentence in; the robot's own commands out."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Generator, Tensor

from moteur.data import Robot, RobotTransform, as_unit_floats
from moteur.flowmatch import Method
from moteur.recipes import Inputs, Processor, check_robot, load_model, load_tokenizer, load_transforms
from moteur.runtime.session import InferenceSession

_HUB = ("revision", "cache_dir", "token", "force_download", "local_files_only")
_FAR = 1.0  # outside the range of the training data by more than its whole width


@dataclass(frozen=True, eq=False)
class Chunk:
    """Commands for the next control steps.

    Attributes:
        actions: Absolute actions in the robot's units, (step, action), or (batch, step, action) for a batch.
        names: Name of each action dimension.
        rate: Control steps per second, or None where the schema does not say.
        step: Control step within the episode that the chunk was predicted at; its first action is for this step.
    """

    actions: Float32[np.ndarray, "*batch step action"]
    names: tuple[str, ...]
    rate: int | None
    step: int

    def __len__(self) -> int:
        return self.actions.shape[-2]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: ANN401, FBT001  # numpy's
        return np.array(self.actions, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Chunk(step {self.step}, actions {self.actions.shape} of {', '.join(self.names)}, rate {self.rate})"


class Policy:
    """A trained model that acts on a robot.

    It takes what a robot has (pictures of its cameras as they come, its state in its own units, a sentence) and returns
    what the robot needs (absolute commands, named, in its own units). It resizes pictures as in training, keeps the
    pictures of t-15 itself, runs an `InferenceSession`, undoes the normalisation, and adds relative dimensions to the
    state.

    Every call of `act` or `observe` is one control step, unless `step` says otherwise: a policy that is asked once
    every ten control steps must be shown the pictures in between with `observe`, or be told the `step`. Call `reset`
    when an episode starts.

    Args:
        session: The model, ready to act.
        tokenizer: Text tokenizer of the model.
        transform: The robot's schema and statistics.

    Raises:
        ValueError: If the transform does not fit the model.

    Examples:
        A model of toy size with fresh weights, so the commands mean nothing:

        >>> from moteur.data import FieldStatistics, Robot, RobotStatistics, Source
        >>> from moteur.recipes import InternVLAA1, preset
        >>> config = preset("tiny")
        >>> robot = Robot("toy", (Source("state", 2),), (Source("action", 2),), ("front", None, "wrist"), rate=30)
        >>> unit = FieldStatistics(9, mean=(0.0,) * 2, std=(1.0,) * 2, min=(-1.0,) * 2, max=(1.0,) * 2)
        >>> transform = config.transform(robot, RobotStatistics("toy", config.chunk, unit, unit))
        >>> letters = lambda text, add_special_tokens: {"input_ids": [[ord(c) % 99 + 9 for c in t[:16]] for t in text]}
        >>> policy = Policy(InferenceSession(InternVLAA1(config)), letters, transform)
        >>> picture = np.zeros((48, 64, 3), np.uint8)
        >>> chunk = policy.act({"front": picture, "wrist": picture}, [0.1, -0.2], "fold the towel")
        >>> chunk.actions.shape, chunk.step
        ((30, 2), 0)
    """

    def __init__(self, session: InferenceSession, tokenizer: Callable[..., Any], transform: RobotTransform) -> None:
        config = session.config
        expected = {"size": config.frame_size, "cameras": config.views, "chunk": config.chunk}
        found = {"size": transform.size, "cameras": len(transform.robot.cameras), "chunk": transform.window.chunk}
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(f"transform: expected {name} {value} as the model has, got {found[name]}")
        window = transform.window
        if session.model.foresight is not None and window.seconds is None:
            history = session.history.reach
            if window.offsets not in {(0,), (-history, 0, history)}:
                raise ValueError(f"transform: expected frames {history} apart as the model has, got {window.offsets}")
        check_robot(config, transform.robot)
        self.session, self.transform = session, transform
        self.processor = Processor(config, tokenizer, convention=transform.convention)
        self._next = 0
        self._warned: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        robot: str | None = None,
        transform: RobotTransform | None = None,
        tokenizer: Callable[..., Any] | str | Path | None = None,
        session: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401  # handed on
    ) -> "Policy":
        """Load a policy from a checkpoint: model, text tokenizer, robot schema and statistics.

        Args:
            source: Folder, or Hub id `owner/name`.
            robot: Which robot of the checkpoint; needed only where it holds several.
            transform: Schema and statistics of a robot, instead of the checkpoint's.
            tokenizer: A text tokenizer, or where to load it from, instead of the checkpoint's.
            session: Arguments of `InferenceSession`, such as `{"kernel": "aten"}`.
            **options: Arguments of `load_model`, such as `dtype`, `device` and `revision`.

        Raises:
            ValueError: If the checkpoint has no tokenizer or no such robot, or whatever `load_model` refuses. The
                message says what to give.
        """
        if tokenizer is None:  # before the weights: what is missing is told at once
            hub: dict[str, Any] = {name: options[name] for name in _HUB if name in options}
            words: Any = load_tokenizer(source, **hub)
        else:
            words = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        model = load_model(source, **options)
        if transform is None:
            transform = _chosen(load_transforms(model.statistics), robot, source)
        return cls(InferenceSession(model, take_over=True, **(session or {})), words, transform)

    def __repr__(self) -> str:
        cameras = ", ".join(self.cameras)
        return f"Policy(robot {self.robot.name!r}, cameras {cameras}, {self.session!r})"

    @property
    def robot(self) -> Robot:
        """The robot's schema."""
        return self.transform.robot

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the robot's cameras, in the order of a list of pictures."""
        return tuple(camera for camera in self.robot.cameras if camera is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each action dimension."""
        if self.robot.joints is not None:
            return self.robot.joints
        return tuple(f"{part.key}[{part.start + place}]" for part in self.robot.action for place in range(part.size))

    def reset(self) -> None:
        """Start an episode: forget the pictures of the last one, count control steps from 0, warn anew."""
        self.session.reset()
        self._next = 0
        self._warned.clear()

    def act(
        self,
        pictures: Mapping[str, Any] | Sequence[Any],
        state: Float[np.ndarray, "*batch state"] | Tensor | Sequence[float],
        instruction: str | Sequence[str],
        *,
        step: int | None = None,
        noise: Float[Tensor, "*batch step action"] | None = None,
        generator: Generator | None = None,
        steps: int | None = None,
        method: Method = "euler",
    ) -> Chunk:
        """Commands for the next control steps.

        Args:
            pictures: By camera name (the schema's, or its last part: "front" for "observation.images.front"), or a list
                in the order of `cameras`. Each is a numpy array (height, width, 3), a torch tensor (3, height, width)
                or a PIL image, RGB, uint8 or floats in [0, 1]; for a batch with a leading axis, or a list of them. A
                camera that is not there is left out or None; the policy then acts without it and warns once an episode.
            state: The robot's own state, in its units, (state) or (batch, state).
            instruction: What to do; one sentence, or one for each sample of a batch.
            step: Control step within the episode; None: the one after the last call.
            noise: Where the flow starts, (step, action) or (batch, step, action), or None to draw it.
            generator: Draws the noise when it is not given; same seed, same commands.
            steps: Solver steps; None takes the configuration's.
            method: Solver.

        Raises:
            ValueError: For an unknown camera, a picture or state that does not fit or is not finite, an instruction
                that is empty or too long, or a step before the last. The argument, what was expected and what arrived
                are named.
        """
        prepared = self.transform.state(state)  # checked before anything else
        batched = prepared.ndim > 1
        frames = self._frames(pictures)
        inputs = self._inputs(frames, prepared if batched else prepared[None], instruction)
        step = self._next if step is None else step
        episode = None if self.session.model.foresight is None else step
        noise = noise if noise is None or batched else noise[None]
        actions = self.session.act(inputs, noise=noise, generator=generator, steps=steps, method=method, step=episode)
        commands = self.transform.commands(actions.cpu() if batched else actions[0].cpu(), state)
        self._next = step + 1
        self._warn_missing(frames)
        self._warn_far(state)
        self._warn_unknown_words([instruction] if isinstance(instruction, str) else instruction)
        return Chunk(commands.float().numpy(), self.names, self.robot.rate, step)

    def observe(self, pictures: Mapping[str, Any] | Sequence[Any], *, step: int | None = None) -> None:
        """Show the pictures of a control step in which the policy does not act.

        Args:
            pictures: As for `act`.
            step: As for `act`.
        """
        frames = self._frames(pictures)
        step = self._next if step is None else step
        if self.session.model.foresight is not None:
            batch = _batch(frames)
            stacked = self.processor.pictures(self._view_names, frames, batch)[:, :, 0]
            valid = torch.tensor([seen is not None for seen in frames]).expand(batch, -1)
            self.session.observe(stacked, view_valid=valid, step=step)
        self._next = step + 1
        self._warn_missing(frames)

    def imagine(
        self, pictures: Mapping[str, Any] | Sequence[Any], instruction: str | Sequence[str], *, step: int | None = None
    ) -> dict[str, Float32[np.ndarray, "*batch side side 3"]]:
        """The pictures that the model expects in half a second (15 frames later), by camera name.

        The call takes no part in the episode: it is no control step.

        Args:
            pictures: As for `act`.
            instruction: As for `act`.
            step: Control step of these pictures; None: the one after the last call.

        Returns:
            Floats in [0, 1], (side, side, 3), with a leading axis for a batch; cameras that are missing are left out.

        Raises:
            ValueError: If the model has no generation expert or was loaded without the Cosmos decoder
                (`decoder=True`).
        """
        frames = self._frames(pictures)
        state = torch.zeros(_batch(frames), self.session.config.state_dim)
        inputs = self._inputs(frames, state, instruction)
        step = self._next if step is None else step
        imagined = self.session.imagine(inputs, decode=True, step=step, keep=False)
        assert imagined.images is not None
        images = imagined.images.permute(0, 1, 3, 4, 2).float().cpu().numpy()
        given = self._by_camera(pictures).values()
        batched = any(isinstance(each, list | tuple) or getattr(each, "ndim", 3) > 3 for each in given)  # noqa: PLR2004
        return {
            camera: images[:, view] if batched else images[0, view]
            for view, (camera, seen) in enumerate(zip(self.robot.cameras, frames, strict=True))
            if camera is not None and seen is not None
        }

    # From what a robot has to what the processor takes

    @property
    def _view_names(self) -> list[str]:
        """What messages call the pictures of each view."""
        return [f"pictures[{camera!r}]" for camera in self.robot.cameras]

    def _inputs(self, frames: list[Tensor | None], state: Tensor, instruction: str | Sequence[str]) -> Inputs:
        given: object = instruction
        if not isinstance(given, str) and not (isinstance(given, list | tuple) and {*map(type, given)} == {str}):
            raise ValueError(f"instruction: expected a sentence, or one for each sample, got {given!r:.60}")
        sentences = [instruction] * len(state) if isinstance(instruction, str) else instruction
        return self.processor(frames, state[:, : self.robot.state_dim], sentences, names=self._view_names)

    def _frames(self, pictures: Mapping[str, Any] | Sequence[Any]) -> list[Tensor | None]:
        """Pictures of each view, (batch, 1, 3, height, width), or None."""
        found = self._by_camera(pictures)
        frames: list[Tensor | None] = []
        for camera in self.robot.cameras:
            given = None if camera is None else found.get(camera)
            picture = None if given is None else as_pictures(f"pictures[{camera!r}]", given)[:, None]
            if picture is not None and self.transform.images == "float32" and picture.dtype == torch.uint8:
                picture = as_unit_floats(picture)
            frames.append(picture)
        if not any(seen is not None for seen in frames):
            raise ValueError(f"pictures: expected at least one of the cameras {list(self.cameras)}, got none")
        return frames

    def _by_camera(self, pictures: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        cameras = self.cameras
        if not isinstance(pictures, Mapping):
            if len(pictures) != len(cameras):
                raise ValueError(f"pictures: expected {len(cameras)}, of {list(cameras)} in order, got {len(pictures)}")
            return dict(zip(cameras, pictures, strict=True))
        short = {camera.rsplit(".", maxsplit=1)[-1]: camera for camera in cameras}
        known = {camera: camera for camera in cameras} | (short if len(short) == len(cameras) else {})
        if unknown := [name for name in pictures if name not in known]:
            raise ValueError(f"pictures: expected cameras of {list(short)}, got {unknown}")
        found = {known[name]: picture for name, picture in pictures.items()}
        if len(found) < len(pictures):
            raise ValueError(f"pictures: expected each camera once, got {list(pictures)}")
        return found

    # Warnings, once an episode

    def _warn_missing(self, frames: list[Tensor | None]) -> None:
        for camera, seen in zip(self.robot.cameras, frames, strict=True):
            if camera is not None and seen is None:
                self._warn(f"pictures: camera {camera!r} is missing, the policy acts without it")

    def _warn_far(self, state: Float[np.ndarray, "*batch state"] | Tensor | Sequence[float]) -> None:
        statistics = self.transform.statistics.state
        values = state.detach().cpu().double().numpy() if isinstance(state, Tensor) else np.asarray(state, np.float64)
        values = values.reshape(-1, len(statistics.min))
        low, high = np.asarray(statistics.min), np.asarray(statistics.max)
        margin = _FAR * np.maximum(high - low, 1e-6)
        far = (values < low - margin) | (values > high + margin)
        for dim in np.flatnonzero(far.any(axis=0)):
            name = self.robot.state_entries[dim]
            self._warn(
                f"state: {name} is {values[far[:, dim], dim][0]:g}, in training it was between "
                f"{low[dim]:g} and {high[dim]:g}; are the units those of the schema?",
                key=name,
            )

    def _warn_unknown_words(self, sentences: Sequence[str]) -> None:
        tokenizer = self.processor.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None:
            return
        for word in dict.fromkeys(word for sentence in sentences for word in sentence.split()):
            if unknown in tokenizer([word], add_special_tokens=False)["input_ids"][0]:
                self._warn(f"instruction: the tokenizer does not know {word!r}")

    def _warn(self, message: str, *, key: str | None = None) -> None:
        if (key or message) not in self._warned:
            self._warned.add(key or message)
            warnings.warn(message, stacklevel=5)


def _batch(frames: list[Tensor | None]) -> int:
    return next(len(seen) for seen in frames if seen is not None)


def as_pictures(name: str, value: Any) -> Tensor:  # noqa: ANN401  # numpy, PIL or torch
    """One picture or a batch, as a tensor (batch, 3, height, width) of uint8 or floats.

    Args:
        name: What messages call it.
        value: A PIL image; a numpy array or torch tensor, (height, width, 3) or (3, height, width), perhaps with a
            leading axis; or a list of these of one size, for a batch.

    Raises:
        ValueError: If it is none of these, or has another number of channels.
    """
    if isinstance(value, list | tuple):
        return _stacked(name, cast("Sequence[Any]", value))
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # a PIL image; Pillow is not a requirement
        value = np.asarray(value.convert("RGB"))
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if not isinstance(value, Tensor):
        expected = "a numpy array, a torch tensor, a PIL image or a list of them"
        raise ValueError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value.ndim not in {3, 4}:
        raise ValueError(f"{name}: expected (height, width, 3) or (3, height, width), got shape {tuple(value.shape)}")
    if not value.numel():
        raise ValueError(f"{name}: expected a picture with pixels, got shape {tuple(value.shape)}")
    batch = value if value.ndim == 4 else value[None]  # noqa: PLR2004  a picture has three axes
    if batch.shape[-1] == 3:  # noqa: PLR2004  red, green, blue
        batch = batch.movedim(-1, 1)
    elif batch.shape[1] != 3:  # noqa: PLR2004
        raise ValueError(f"{name}: expected 3 channels, got shape {tuple(value.shape)}")
    return batch


def _stacked(name: str, pictures: Sequence[Any]) -> Tensor:
    batch = [as_pictures(f"{name}[{place}]", picture) for place, picture in enumerate(pictures)]
    kinds = {(tuple(picture.shape[1:]), str(picture.dtype)) for picture in batch}
    if len(kinds) != 1:
        raise ValueError(f"{name}: expected pictures of one size and number format, got {sorted(kinds)}")
    return torch.cat(batch)


def _chosen(transforms: Mapping[str, RobotTransform], robot: str | None, source: str | Path) -> RobotTransform:
    if robot is None and len(transforms) == 1:
        return next(iter(transforms.values()))
    if robot is None or robot not in transforms:
        hint = "" if transforms else "; it holds no statistics, give transform="
        raise ValueError(f"robot: expected one of {sorted(transforms)} of {source}, got {robot!r}{hint}")
    return transforms[robot]
