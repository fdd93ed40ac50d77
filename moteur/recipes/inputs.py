"""What a recipe takes: what the policy sees, what it learns from, and the checks of both."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Frames = UInt8[Tensor, "batch view time 3 side side"] | Float[Tensor, "batch view time 3 side side"]


@runtime_checkable
class Sizes(Protocol):
    """The sizes that the configuration of every model has: what inputs are checked against.

    Attributes:
        variant: Name of the kind of model.
        views: Cameras.
        times: Times that the policy sees pictures of: t-15 and t with a generation expert, else t alone.
        frame_size: Pixels along the side of a picture.
        text_length: Longest instruction, in tokens.
        vocabulary: Rows of the text embedding.
        chunk: Action steps.
        state_dim: Length of the state, padding included.
        action_dim: Length of an action, padding included.
        action_reduction: Which action elements the loss averages: "valid" ones, or all, as "released".
        latent_shape: Channels, rows and columns of the latents of a picture; None for a model that has none.
        image_tokens: Tokens that one view takes in the first expert.
        image_patches: Patches of one view in the vision tower.
    """

    @property
    def variant(self) -> str: ...  # noqa: D102  see above
    @property
    def views(self) -> int: ...  # noqa: D102
    @property
    def frame_size(self) -> int: ...  # noqa: D102
    @property
    def text_length(self) -> int: ...  # noqa: D102
    @property
    def vocabulary(self) -> int: ...  # noqa: D102
    @property
    def chunk(self) -> int: ...  # noqa: D102
    @property
    def state_dim(self) -> int: ...  # noqa: D102
    @property
    def action_dim(self) -> int: ...  # noqa: D102
    @property
    def action_reduction(self) -> str: ...  # noqa: D102
    @property
    def times(self) -> int: ...  # noqa: D102
    @property
    def latent_shape(self) -> tuple[int, int, int] | None: ...  # noqa: D102
    @property
    def image_tokens(self) -> int: ...  # noqa: D102
    @property
    def image_patches(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Inputs:
    """What the policy sees: a batch of observations.

    Pictures stay pictures until they reach the model's device; the backbone cuts patches there.

    Attributes:
        frames: Pictures of every view, uint8, or floats in [0, 1], square with `config.frame_size` pixels a side. Times
            in order; the last is the present. The generation expert needs t-15 and the present, unless `latents` are
            given.
        instruction: Token ids of the instruction, right-padded.
        attention_mask: True on tokens of the instruction, False on padding; None means that there is no padding.
        view_valid: True where the camera exists; None means that all do. What the pixels of a missing camera hold does
            not matter, NaN included.
        state: Proprioceptive state, normalised, padded with zeros.
        latents: Cosmos latents of the times t-15 and t for the generation expert, instead of encoding `frames`.
    """

    frames: Frames
    instruction: Int[Tensor, "batch text"]
    attention_mask: Bool[Tensor, "batch text"] | None
    view_valid: Bool[Tensor, "batch view"] | None
    state: Float[Tensor, "batch state"]
    latents: Float[Tensor, "batch view 2 channel rows columns"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Inputs":
        """The same inputs with every tensor on a device; copies from pinned memory may not block."""
        return each_tensor(self, lambda value: value.to(device, non_blocking=non_blocking))

    def check(self, config: Sizes, *, known_times: int = 0) -> None:
        """Refuse inputs that do not fit the model, before any compute.

        Shapes and dtypes are always checked. Values are read in host memory only: elsewhere that would wait for a
        device.

        Args:
            config: The model's sizes.
            known_times: Times whose latents the caller holds already, so that no frame is needed for them.

        Raises:
            ValueError: Naming the argument, what was expected and what arrived.
        """
        frames, ids, batch, views = self.frames, self.instruction, self.state.shape[0], config.views
        expect_floats("state", self.state, (batch, config.state_dim), finite=True)
        square = (3, config.frame_size, config.frame_size)
        expect_shape("frames", (*frames.shape[:2], *frames.shape[3:]), (batch, views, *square))
        times = frames.shape[2] + known_times
        if times < (1 if self.latents is not None else config.times):
            raise ValueError(f"frames: expected the times t-15 and t, or latents of both, got {frames.shape[2]} time")
        expect_shape("instruction", ids.shape[:1], (batch,))
        if ids.dtype not in {torch.int64, torch.int32}:
            raise ValueError(f"instruction: expected token ids of int64 or int32, got {ids.dtype}")
        if _readable(ids) and ids.numel() and (ids.numpy().min() < 0 or ids.numpy().max() >= config.vocabulary):
            found = f"{ids.numpy().min()} to {ids.numpy().max()}"
            raise ValueError(f"instruction: expected token ids in [0, {config.vocabulary}), got {found}")
        if ids.shape[1] > config.text_length:
            raise ValueError(f"instruction: expected at most {config.text_length} tokens, got {ids.shape[1]}")
        mask = self.attention_mask
        expect_mask("attention_mask", mask, tuple(ids.shape))
        if mask is not None and _readable(mask) and not mask.numpy().any(axis=1).all():
            raise ValueError("attention_mask: expected a token in every sample, got a sample without")
        expect_mask("view_valid", self.view_valid, (batch, views))
        expect_latents("latents", self.latents, config, (batch, views, 2))
        check_frames("frames", frames, self.view_valid)

    def noise(
        self,
        config: Sizes,
        given: Float[Tensor, "batch step action"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """Noise for these inputs: the given one, or a draw on the device of the state.

        Raises:
            ValueError: If the given noise has another shape than (batch, chunk, action_dim), or is not floating point.
        """
        state = self.state
        shape = (state.shape[0], config.chunk, config.action_dim)
        if given is None:
            return torch.randn(shape, generator=generator, device=state.device, dtype=state.dtype)
        expect_floats("noise", given, shape, finite=True)
        return given


@dataclass(frozen=True)
class Targets:
    """What the policy learns from. Every mask is True where the element is real; None means all are.

    Attributes:
        actions: Action chunk, normalised, padded with zeros.
        valid_steps: False on steps past the end of the episode.
        valid_dims: False on padded action dimensions.
        valid_samples: False on samples without actions (human video).
        future_frames: Pictures of t+15, uint8 or floats in [0, 1], or None.
        future_latents: Their Cosmos latents, or None. With neither there is no foresight loss.
        valid_future: False where the frame of t+15 lies past the end of the episode. Missing cameras need no entry.
    """

    actions: Float[Tensor, "batch step action"]
    valid_steps: Bool[Tensor, "batch step"] | None = None
    valid_dims: Bool[Tensor, "batch action"] | None = None
    valid_samples: Bool[Tensor, " batch"] | None = None
    future_frames: UInt8[Tensor, "batch view 3 side side"] | Float[Tensor, "batch view 3 side side"] | None = None
    future_latents: Float[Tensor, "batch view channel rows columns"] | None = None
    valid_future: Bool[Tensor, "batch view"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Targets":
        """The same targets with every tensor on a device; copies from pinned memory may not block."""
        return each_tensor(self, lambda value: value.to(device, non_blocking=non_blocking))

    def check(self, inputs: Inputs, config: Sizes) -> None:
        """Refuse targets that do not fit the inputs and the model. Values are read in host memory only.

        Raises:
            ValueError: Naming the argument, what was expected and what arrived.
        """
        batch, views = inputs.state.shape[0], config.views
        expect_mask("targets.valid_steps", self.valid_steps, (batch, config.chunk))
        expect_mask("targets.valid_dims", self.valid_dims, (batch, config.action_dim))
        expect_mask("targets.valid_samples", self.valid_samples, (batch,))
        expect_mask("targets.valid_future", self.valid_future, (batch, views))
        expect_floats("targets.actions", self.actions, (batch, config.chunk, config.action_dim))
        expect_latents("targets.future_latents", self.future_latents, config, (batch, views))
        if _readable(self.actions) and not np.isfinite(_array(real_actions(self))).all():
            raise ValueError("targets.actions: expected finite values where they are valid, got some that are not")
        if self.future_frames is not None:
            square = (3, config.frame_size, config.frame_size)
            expect_shape("targets.future_frames", self.future_frames.shape, (batch, views, *square))
            if self.future_latents is not None:
                raise ValueError("targets: expected future frames or future latents, got both")
            check_frames("targets.future_frames", self.future_frames, learned_views(self, inputs))

    def learned_actions(self, *, padding: bool = False) -> Bool[Tensor, "batch step action"]:
        """Elements that every mask calls valid; with `padding`, every element of the samples with actions."""
        counted = torch.ones_like(self.actions, dtype=torch.bool)
        if self.valid_samples is not None:
            counted = counted & self.valid_samples[:, None, None]
        if self.valid_steps is not None and not padding:
            counted = counted & self.valid_steps[:, :, None]
        if self.valid_dims is not None and not padding:
            counted = counted & self.valid_dims[:, None, :]
        return counted

    def counts(self, inputs: Inputs, config: Sizes) -> Int[Tensor, "2"]:
        """Elements that the action loss and the foresight loss are means over, from the masks alone."""
        foresees = self.future_frames is not None or self.future_latents is not None
        latents = math.prod(config.latent_shape) if foresees and config.latent_shape and config.times > 1 else 0
        actions = self.learned_actions(padding=config.action_reduction == "released")
        return torch.stack([actions.sum(), learned_views(self, inputs).sum() * latents])


Half = TypeVar("Half", Inputs, Targets)


def each_tensor(half: Half, change: Callable[[Tensor], Tensor]) -> Half:
    """The same inputs or targets with every tensor changed."""
    values = {field.name: getattr(half, field.name) for field in fields(half)}
    return replace(half, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def only(values: Tensor, valid: Bool[Tensor, "..."] | None) -> Tensor:
    """Values where `valid` holds, zeros elsewhere; `valid` has the leading axes of `values`, None keeps all."""
    if valid is None:
        return values
    return torch.where(valid.reshape(*valid.shape, *[1] * (values.ndim - valid.ndim)), values, 0)


def real_actions(targets: Targets) -> Float[Tensor, "batch step action"]:
    """The actions, with zeros in place of values that are not finite where a mask says that they are padding."""
    return torch.where(targets.learned_actions() | torch.isfinite(targets.actions), targets.actions, 0)


def learned_views(targets: Targets, inputs: Inputs) -> Bool[Tensor, "batch view"]:
    """Where foresight is learned: the camera exists, and the frame of t+15 lies inside the episode."""
    valid = torch.ones(inputs.frames.shape[:2], dtype=torch.bool, device=inputs.frames.device)
    for mask in (inputs.view_valid, targets.valid_future):
        valid = valid if mask is None else valid & mask
    return valid


def check_frames(name: str, frames: Tensor, valid: Tensor | None) -> None:
    """Refuse pictures that are neither uint8 nor floats in [0, 1]; those of invalid views may hold anything.

    Raises:
        ValueError: For another dtype, or values out of range or not finite.
    """
    if frames.dtype == torch.uint8:
        return
    if not frames.is_floating_point():
        raise ValueError(f"{name}: expected uint8 or floats in [0, 1], got {frames.dtype}")
    if not _readable(frames) or (valid is not None and not _readable(valid)):
        return
    values = _array(frames)
    if valid is not None and not (seen := valid.numpy()).all():
        values = values[seen]
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails
        raise ValueError(f"{name}: expected floats in [0, 1], got floats in [{values.min():g}, {values.max():g}]")


def expect_shape(name: str, actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse a shape that is not the expected one, by a `ValueError` that names the argument."""
    if tuple(actual) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(actual)}")


def expect_floats(name: str, values: Tensor | None, shape: tuple[int, ...], *, finite: bool = False) -> None:
    """Refuse a tensor of another shape, of integers or booleans, or with values in host memory that are not finite."""
    if values is None:
        return
    expect_shape(name, values.shape, shape)
    if not values.is_floating_point():
        raise ValueError(f"{name}: expected floats, got {values.dtype}")
    if finite and _readable(values) and not np.isfinite(_array(values)).all():
        raise ValueError(f"{name}: expected finite values, got some that are not")


def expect_latents(name: str, latents: Tensor | None, config: Sizes, lead: tuple[int, ...]) -> None:
    """Refuse latents of another shape, and any for a model that has none."""
    if latents is not None and config.latent_shape is None:
        raise ValueError(f"{name}: expected None for a model without foresight, got shape {tuple(latents.shape)}")
    expect_floats(name, latents, (*lead, *(config.latent_shape or ())))


def expect_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a mask of another shape, or of anything but booleans."""
    if mask is None:
        return
    expect_shape(name, mask.shape, shape)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected booleans, got {mask.dtype}")


def _readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _array(values: Tensor) -> np.ndarray:
    return (values.float() if values.dtype in {torch.bfloat16, torch.float16} else values).detach().numpy()
