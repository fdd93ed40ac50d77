"""From pictures, a state and a sentence to what the model takes: resizing, token ids, padding."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from moteur.data import Convention, as_unit_floats, resize_with_pad
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs, Sizes, check_frames, expect_shape
from moteur.recipes.pi0_config import Pi0Config
from moteur.recipes.prompts import Words, tokenize_prompts

Pictures = UInt8[Tensor, "batch time 3 _ _"] | Float[Tensor, "batch time 3 _ _"]  # each camera has a size of its own

Tokenizer: TypeAlias = Callable[..., Mapping[str, list[list[int]]]] | Words
"""`tokenizer(texts, add_special_tokens=False)["input_ids"]` are ids of texts, or `tokenizer(text)` those of one."""


class Processor:
    """Makes `Inputs` from pictures of any size, a normalised state and instructions.

    For π0 and π0.5 it writes the prompt, see `tokenize_prompts`.

    Args:
        config: The model's sizes.
        tokenizer: Text tokenizer of the backbone (Qwen3-VL's, InternVL3's or PaliGemma's for released weights), called
            as those of `transformers` are if it takes `add_special_tokens`. Otherwise a function from one text to its
            token ids, without marks of its beginning and end, such as `encode` of a SentencePiece model.
        convention: Whose resizing and prompt it is, see `resize_with_pad`; that of the robot's transform. None:
            "openpi" for π0 and π0.5, otherwise "internvla_a1".
    """

    def __init__(self, config: Sizes, tokenizer: Tokenizer, *, convention: Convention | None = None) -> None:
        self.config = config
        self.tokenizer: Callable[..., Any] = tokenizer
        known = signature(tokenizer).parameters
        self._takes_several = "add_special_tokens" in known or any(
            each.kind is Parameter.VAR_KEYWORD for each in known.values()
        )
        self.convention: Convention = convention or ("openpi" if isinstance(config, Pi0Config) else "internvla_a1")

    def __call__(
        self,
        frames: Sequence[Pictures | None],
        state: Float[Tensor, "batch state"],
        instructions: Sequence[str],
        *,
        view_valid: Bool[Tensor, "batch view"] | None = None,
        names: Sequence[str] | None = None,
    ) -> Inputs:
        """Inputs of a batch of observations.

        Args:
            frames: For each view the pictures of t-15 and t (or of t alone, for a model without generation expert, or
                where latents are known), uint8 or floats in [0, 1]; sizes may differ from view to view. None for a
                view that no sample of the batch has.
            state: Proprioceptive state, normalised, of any length up to the configured one; padded with zeros. Where
                the prompt says it, only what the robot has: padding would be read as numbers.
            instructions: What to do, one sentence a sample.
            view_valid: False where a sample lacks that camera; None means that all have what `frames` holds.
            names: What messages call the pictures of each view; None for "frames[0]" and so on.

        Raises:
            ValueError: For a wrong number of views, pictures out of range, a state that is too long, an instruction
                that is too long, or batch sizes that differ. The argument is named.
        """
        batch, views = state.shape[0], self.config.views
        if state.shape[1] > self.config.state_dim:
            raise ValueError(f"state: expected at most {self.config.state_dim} dimensions, got {state.shape[1]}")
        if isinstance(instructions, str) or len(instructions) != batch:
            raise ValueError(f"instructions: expected a list of {batch}, one a sample, got {instructions!r}")
        pictures = self.pictures(names or [f"frames[{view}]" for view in range(len(frames))], frames, batch)
        present = torch.tensor([seen is not None for seen in frames]).expand(batch, -1)
        if view_valid is not None:
            expect_shape("view_valid", view_valid.shape, (batch, views))
            present = present & view_valid
        ids, mask = self.text(instructions, state)
        return Inputs(
            frames=pictures,
            instruction=ids,
            attention_mask=mask,
            view_valid=present,
            state=torch.nn.functional.pad(state.float(), (0, self.config.state_dim - state.shape[1])),
        )

    def text(
        self,
        instructions: Sequence[str],
        state: Float[Tensor, "batch _"] | None = None,
        valid_dims: Bool[Tensor, "batch _"] | None = None,
    ) -> tuple[Int[Tensor, "batch text"], Bool[Tensor, "batch text"]]:
        """Token ids, right-padded to the configured length, and which of them are text.

        Args:
            instructions: One a sample.
            state: Normalised; needed where the prompt says it, and otherwise unused.
            valid_dims: False where the state is padding, which the prompt leaves out; None means nowhere.

        Raises:
            ValueError: If an instruction has more tokens than the model reads, or none, or the prompt needs a state. A
                prompt of π0 or π0.5 that is too long is cut.
        """
        config, length = self.config, self.config.text_length
        if isinstance(config, Pi0Config):
            states: list[Tensor] | None = None
            if config.prompt == "state":
                if state is None:
                    raise ValueError("state: expected that of each sample, as the prompt says it, got None")
                every = torch.ones_like(state, dtype=torch.bool) if valid_dims is None else valid_dims
                states = [row[valid] for row, valid in zip(state, every, strict=True)]
            return tokenize_prompts(
                lambda text: self._ids([text])[0],
                instructions,
                states,
                length=length,
                pad=config.pad,
                convention="lerobot" if self.convention == "lerobot" else "openpi",
            )
        texts = self._ids(list(instructions))
        for sample, text in enumerate(texts):
            if not 0 < len(text) <= length:
                said = instructions[sample]
                raise ValueError(f"instructions[{sample}]: expected 1 to {length} tokens, got {len(text)} of {said!r}")
        pad = cast("InternVLAA1Config", config).token_ids.pad
        ids = torch.tensor([[*text, *[pad] * (length - len(text))] for text in texts])
        return ids, torch.arange(length) < torch.tensor([[len(text)] for text in texts])

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self._takes_several:
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(self.tokenizer(text)) for text in texts]

    def pictures(
        self, names: Sequence[str], frames: Sequence[Pictures | None], batch: int
    ) -> UInt8[Tensor, "batch view time 3 side side"] | Float[Tensor, "batch view time 3 side side"]:
        """All views' pictures, fitted into the model's square; views that are not there are white.

        uint8 stays uint8: pictures of another size are resized, in floating point except for `openpi`, and rounded
        again. Floats come out as float32, and so do all views if one of them holds floats.

        Args:
            names: What messages call the pictures of each view.
            frames: As for a call.
            batch: Number of samples.

        Raises:
            ValueError: For another number of views, none at all, other axes, or values out of range.
        """
        views, side = self.config.views, self.config.frame_size
        seen = [pictures for pictures in frames if pictures is not None]
        if len(frames) != views or not seen:
            raise ValueError(
                f"frames: expected {views} views, at least one of them there, got {len(frames)}, {len(seen)} there"
            )
        times = seen[0].shape[1]
        for name, pictures in zip(names, frames, strict=True):
            if pictures is None:
                continue
            shape = tuple(pictures.shape)
            if len(shape) != 5 or shape[:3] != (batch, times, 3):  # noqa: PLR2004  batch, time, channel, height, width
                raise ValueError(f"{name}: expected ({batch}, {times}, 3, height, width), got {shape}")
            check_frames(name, pictures, None)
        floats = any(pictures.dtype != torch.uint8 for pictures in seen)
        white = torch.full((batch, times, 3, side, side), 1.0 if floats else 255, dtype=None if floats else torch.uint8)

        def fitted(pictures: Pictures) -> Tensor:
            given = as_unit_floats(pictures) if floats else pictures
            resized = resize_with_pad(given, side, convention=self.convention)
            return resized.float() if floats else resized

        return torch.stack([white if view is None else fitted(view) for view in frames], dim=1)
