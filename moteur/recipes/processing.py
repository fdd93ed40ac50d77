"""From raw observations to what the model takes: resizing, patches, token ids, padding, and every check of input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from moteur.data import as_unit_range, resize_with_pad
from moteur.recipes.checks import expect_shape, real_actions
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.patches import ImageGrid, InternVLPatches, Qwen3VLPatches

Frames = UInt8[Tensor, "batch time 3 _ _"] | Float[Tensor, "batch time 3 _ _"]  # each camera has a size of its own


@runtime_checkable
class TextTokenizer(Protocol):
    """What a text tokenizer of `transformers` offers, as far as we use it."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, list[list[int]]]:
        """Token ids of each text, under "input_ids"."""
        ...


@dataclass(frozen=True)
class Observation:
    """A batch of raw observations.

    Attributes:
        frames: For each camera the frames of t-15 and t, uint8 or floats in [0, 1]; sizes may differ from camera to
            camera. None for a camera that no sample of the batch has.
        state: Proprioceptive state, normalised, of any length up to the configured one.
        instructions: What to do, one sentence a sample.
        view_valid: False where a sample lacks that camera; None means that all have what `frames` holds.
    """

    frames: Sequence[Frames | None]
    state: Float[Tensor, "batch state"]
    instructions: Sequence[str]
    view_valid: Bool[Tensor, "batch view"] | None = None


class Processor:
    """Makes `Inputs` and `Targets` from raw observations on the CPU; what a caller can get wrong is checked here.

    Args:
        config: The model's sizes.
        tokenizer: Text tokenizer of the backbone: Qwen3-VL's or InternVL3's for released weights.
    """

    def __init__(self, config: InternVLAA1Config, tokenizer: TextTokenizer) -> None:
        vision = config.vision
        self.config = config
        self.tokenizer = tokenizer
        self.patches = Qwen3VLPatches(vision) if isinstance(vision, Qwen3VLVision) else InternVLPatches(vision)

    def __call__(self, observation: Observation) -> Inputs:
        """Processed tensors of a batch of observations.

        Raises:
            ValueError: For a wrong number of views, images out of range, a state that is too long or not finite, an
                instruction that is too long, or batch sizes that differ.
        """
        state = self._padded("state", observation.state, self.config.state_dim, axes=("batch", "dimension"))
        batch = state.shape[0]
        if len(observation.instructions) != batch:
            raise ValueError(f"instructions: expected {batch}, one a sample, got {len(observation.instructions)}")
        frames, present = self._views("frames", observation.frames, batch, times=2)
        view_valid = present
        if observation.view_valid is not None:
            expect_shape("view_valid", observation.view_valid.shape, (batch, self.config.views))
            view_valid = present & observation.view_valid
        pixels, grid = self.patches(frames[:, :, -1])
        views = self._view_tokens(grid)
        input_ids, text_valid = self._tokens(observation.instructions, [token for view in views for token in view])
        seen = view_valid.repeat_interleave(torch.tensor([len(tokens) for tokens in views]), dim=1)
        return Inputs(
            input_ids=input_ids,
            und_valid=torch.cat([seen, text_valid], dim=1),
            pixel_values=pixels,
            image_grid=grid,
            view_valid=view_valid,
            state=state,
            frames=frames,
        )

    def targets(
        self,
        actions: Float[Tensor, "batch step action"],
        *,
        future: Sequence[Frames | None] | None = None,
        valid_steps: Bool[Tensor, "batch step"] | None = None,
        valid_dims: Bool[Tensor, "batch action"] | None = None,
        valid_samples: Bool[Tensor, " batch"] | None = None,
        valid_future: Bool[Tensor, "batch view"] | None = None,
    ) -> Targets:
        """Padded targets of a batch, with the mask of real action dimensions.

        Args:
            actions: Normalised action chunks of any width up to the configured one. Where a mask says that they are not
                real, they may hold anything, NaN included.
            future: For each camera the frame of t+15, with a time axis of 1, or None where there is none: such a
                camera's foresight is not learned from.
            valid_steps: False past the end of the episode.
            valid_dims: False on dimensions that a sample's robot does not have, for batches of several robots; None
                means that all given ones are real.
            valid_samples: False for samples without actions.
            valid_future: False where the frame of t+15 lies past the end of the episode.

        Raises:
            ValueError: For a chunk of another length, too many dimensions, real values that are not finite, bad frames.
        """
        raw = Targets(actions, valid_steps=valid_steps, valid_dims=valid_dims, valid_samples=valid_samples)
        axes = ("batch", "step", "dimension")
        padded = self._padded("actions", real_actions(raw), self.config.action_dim, axes=axes)
        batch, steps, dims = actions.shape
        if steps != self.config.chunk:
            raise ValueError(f"actions: expected {self.config.chunk} steps, got {steps}")
        given = torch.ones(batch, dims, dtype=torch.bool) if valid_dims is None else valid_dims
        valid_dims = torch.nn.functional.pad(given, (0, self.config.action_dim - dims))
        frames = None
        if future is not None:
            frames, present = self._views("future", future, batch, times=1)
            valid_future = present if valid_future is None else present & valid_future
        return Targets(
            actions=padded,
            valid_steps=valid_steps,
            valid_dims=valid_dims,
            valid_samples=valid_samples,
            future_frames=None if frames is None else frames[:, :, 0],
            valid_future=valid_future,
        )

    def _padded(self, name: str, values: Tensor, size: int, axes: tuple[str, ...]) -> Tensor:
        """Checked values as float32, with zeros up to `size`."""
        if values.ndim != len(axes) or not values.is_floating_point():
            raise ValueError(
                f"{name}: expected floats of axes {axes}, got {values.dtype} of shape {tuple(values.shape)}"
            )
        if values.shape[-1] > size:
            raise ValueError(f"{name}: expected at most {size} dimensions, got {values.shape[-1]}")
        if not torch.isfinite(values).all():
            raise ValueError(f"{name}: expected finite values, got {int((~torch.isfinite(values)).sum())} that are not")
        return torch.nn.functional.pad(values.float(), (0, size - values.shape[-1]))

    def _views(self, name: str, frames: Sequence[Frames | None], batch: int, times: int) -> tuple[Tensor, Tensor]:
        """All cameras' frames, (batch, view, time, 3, size, size), and which cameras there are, (batch, view)."""
        views, size = self.config.views, self.config.frame_size
        if len(frames) != views:
            raise ValueError(f"{name}: expected {views} views, got {len(frames)}")
        resized: list[Tensor] = []
        for view, seen in enumerate(frames):
            if seen is None:
                resized.append(torch.ones(batch, times, 3, size, size))
                continue
            if seen.shape[:2] != (batch, times):
                raise ValueError(
                    f"{name}[{view}]: expected batch {batch} and {times} time(s), got {tuple(seen.shape[:2])}"
                )
            resized.append(resize_with_pad(as_unit_range(f"{name}[{view}]", seen), size))
        present = torch.tensor([seen is not None for seen in frames]).expand(batch, -1)
        return torch.stack(resized, dim=1), present

    def _view_tokens(self, grid: ImageGrid) -> list[list[int]]:
        """Each view's part of the understanding stream: image placeholders, between their marks where there are any."""
        ids, merge = self.config.token_ids, self.config.vision.merge
        before, after = ([] if mark is None else [mark] for mark in (ids.vision_start, ids.vision_end))
        return [[*before, *[ids.image] * (rows * columns // merge**2), *after] for rows, columns in grid]

    def _tokens(self, instructions: Sequence[str], views: list[int]) -> tuple[Tensor, Tensor]:
        ids, length = self.config.token_ids, self.config.text_length
        texts = self.tokenizer(list(instructions), add_special_tokens=False)["input_ids"]
        for sample, text in enumerate(texts):
            if len(text) > length:
                raise ValueError(f"instructions[{sample}]: expected at most {length} tokens, got {len(text)}")
        rows = [views + text + [ids.pad] * (length - len(text)) for text in texts]
        valid = [[True] * len(text) + [False] * (length - len(text)) for text in texts]
        return torch.tensor(rows), torch.tensor(valid)
