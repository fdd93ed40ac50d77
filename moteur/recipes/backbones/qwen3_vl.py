"""The understanding stream of the 3B variant: Qwen3-VL's vision tower and text embedding, with M-RoPE positions."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moteur.recipes.backbones.stream import Span, Steps, Stream, spans
from moteur.recipes.backbones.towers import merged_tokens, qwen3_vl_tower
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision
from moteur.recipes.inputs import Inputs


class Qwen3VL(nn.Module):
    """Turns pixels and token ids into the understanding stream.

    For each view `<vision_start>`, its image tokens, `<vision_end>`; then the instruction, right-padded. Image tokens
    take the merged output of the vision tower. The tower is `transformers`' own, built without the DeepStack mergers,
    whose features the released model computes and never reads.

    Source: the Qwen3-VL technical report for the tower and M-RoPE, the InternVLA-A1 paper for the stream.
    """

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        vision = config.vision
        assert isinstance(vision, Qwen3VLVision)
        self.text_embedding = nn.Embedding(config.vocabulary, config.und.dim)
        self.vision = qwen3_vl_tower(vision, dim=config.und.dim)
        self.text_scale = config.text_scale
        self.merge = vision.merge
        self.arrangement = QwenArrangement(vision.merge)

    def forward(self, inputs: Inputs) -> Stream:
        """The understanding stream of a batch.

        Raises:
            ValueError: If `input_ids` is too short for the views that `image_grid` announces.
        """
        views = self.arrangement.spans(inputs.image_grid)
        text = views[-1].stop if views else 0
        if inputs.input_ids.shape[1] < text:
            raise ValueError(
                f"input_ids: expected at least {text} tokens for views of "
                f"{[view.last - view.first for view in views]} image tokens, got {inputs.input_ids.shape[1]}"
            )
        tokens = self.text_embedding(inputs.input_ids)
        pieces: list[Tensor] = []
        for image, view in zip(self.images(inputs), views, strict=True):
            pieces += [tokens[:, view.start : view.first], image, tokens[:, view.last : view.stop]]
        pieces.append(tokens[:, text:] * self.text_scale)
        positions, following = self.positions(inputs.und_valid, inputs.image_grid)
        return Stream(torch.cat(pieces, dim=1), inputs.und_valid, positions, following)

    def images(self, inputs: Inputs) -> list[Float[Tensor, "batch _ dim"]]:
        """The merged output of the vision tower, view by view."""
        batch = inputs.pixel_values.shape[0]
        grid = torch.tensor([(1, *grid) for grid in inputs.image_grid] * batch, device=inputs.pixel_values.device)
        pixels = rearrange(inputs.pixel_values, "batch patches values -> (batch patches) values")
        merged = merged_tokens(self.vision, pixels.to(self.text_embedding.weight.dtype), grid)
        merged = rearrange(merged, "(batch seq) dim -> batch seq dim", batch=batch)
        return list(merged.split([rows * columns // self.merge**2 for rows, columns in inputs.image_grid], dim=1))

    def positions(
        self, valid: Bool[Tensor, "batch seq"], image_grid: tuple[tuple[int, int], ...]
    ) -> tuple[Int[Tensor, "3 batch seq"], Int[Tensor, " batch"]]:
        """Rotary positions on the time, height and width axes, and the position after the last valid token."""
        return self.arrangement.steps(image_grid, length=valid.shape[1], device=valid.device).positions(valid)


@dataclass(frozen=True)
class QwenArrangement:
    """Each view between two marks, then the text.

    Text advances by one on all axes. An image occupies its grid on the height and width axes and advances by the longer
    side of the grid. `merge` is the side, in patches, of the square that becomes one token.
    """

    merge: int

    def spans(self, image_grid: tuple[tuple[int, int], ...]) -> list[Span]:
        """Where each view lies in the stream."""
        return spans([rows * columns // self.merge**2 for rows, columns in image_grid], around=1)

    def steps(
        self, image_grid: tuple[tuple[int, int], ...], *, length: int, device: torch.device | None = None
    ) -> Steps:
        """How positions run along a stream of `length` tokens that begins with these views."""
        rows, columns, advance = [], [], []
        for grid_rows, grid_columns in image_grid:
            height, width = grid_rows // self.merge, grid_columns // self.merge
            rows += [0, *(row for row in range(height) for _ in range(width)), 0]
            columns += [0, *(column for _ in range(height) for column in range(width)), 0]
            advance += [1, *[0] * (height * width - 1), max(height, width), 1]
        text = [0] * (length - len(advance))
        return Steps(
            advance=torch.tensor(advance + [1] * len(text), device=device, dtype=torch.long),
            offsets=torch.tensor([[0] * length, rows + text, columns + text], device=device, dtype=torch.long),
        )
