"""From pictures, a state and a sentence to what the model takes: resizing, token ids, padding."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from moteur.data import as_unit_floats, resize_with_pad
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs, check_frames, expect_shape

Pictures = UInt8[Tensor, "batch time 3 _ _"] | Float[Tensor, "batch time 3 _ _"]  # each camera has a size of its own


class Processor:
    """Makes `Inputs` from pictures of any size, a normalised state and instructions.

    Args:
        config: The model's sizes.
        tokenizer: Text tokenizer of the backbone (Qwen3-VL's or InternVL3's for released weights), or another function
            that is called as `tokenizer(texts, add_special_tokens=False)["input_ids"]`, for a list of ids a text.
    """

    def __init__(self, config: InternVLAA1Config, tokenizer: Callable[..., Mapping[str, list[list[int]]]]) -> None:
        self.config = config
        self.tokenizer = tokenizer

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
            state: Proprioceptive state, normalised, of any length up to the configured one; padded with zeros.
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
        ids, mask = self.text(instructions)
        return Inputs(
            frames=pictures,
            instruction=ids,
            attention_mask=mask,
            view_valid=present,
            state=torch.nn.functional.pad(state.float(), (0, self.config.state_dim - state.shape[1])),
        )

    def text(self, instructions: Sequence[str]) -> tuple[Int[Tensor, "batch text"], Bool[Tensor, "batch text"]]:
        """Token ids, right-padded to the configured length, and which of them are text.

        Raises:
            ValueError: If an instruction has more tokens than the model reads, or none.
        """
        length, pad = self.config.text_length, self.config.token_ids.pad
        texts = self.tokenizer(list(instructions), add_special_tokens=False)["input_ids"]
        for sample, text in enumerate(texts):
            if not 0 < len(text) <= length:
                said = instructions[sample]
                raise ValueError(f"instructions[{sample}]: expected 1 to {length} tokens, got {len(text)} of {said!r}")
        ids = torch.tensor([[*text, *[pad] * (length - len(text))] for text in texts])
        return ids, torch.arange(length) < torch.tensor([[len(text)] for text in texts])

    def pictures(
        self, names: Sequence[str], frames: Sequence[Pictures | None], batch: int
    ) -> UInt8[Tensor, "batch view time 3 side side"] | Float[Tensor, "batch view time 3 side side"]:
        """All views' pictures, fitted into the model's square; views that are not there are white.

        uint8 stays uint8: pictures of another size are resized in floating point and rounded again. Floats come out as
        float32, and so do all views if one of them holds floats.

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
            if not floats and pictures.shape[-2:] == (side, side):
                return pictures
            resized = resize_with_pad(as_unit_floats(pictures), side).float()
            return resized if floats else (resized * 255).round().to(torch.uint8)

        return torch.stack([white if view is None else fitted(view) for view in frames], dim=1)
