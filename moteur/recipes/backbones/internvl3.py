"""The understanding stream of the 2B variant: InternViT, its projector and the text embedding, with plain positions."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moteur.recipes.backbones.stream import Span, Steps, Stream, spans
from moteur.recipes.backbones.towers import intern_vit
from moteur.recipes.checks import expect_shape
from moteur.recipes.config import InternVLAA1Config, InternVLVision
from moteur.recipes.inputs import Inputs


class InternVL3(nn.Module):
    """Turns pixels and token ids into the understanding stream.

    The image tokens of every view, one view after another with nothing between them; then the instruction,
    right-padded, its embeddings multiplied by `config.text_scale` (√hidden, as the released code computes; InternVL3
    itself does not scale). Valid tokens are counted from 0: the position of each is the number of valid ones before it.

    Source: "InternVL3", arXiv 2504.10479, for the tower and the projector; the InternVLA-A1 paper for the stream.
    """

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        vision = config.vision
        assert isinstance(vision, InternVLVision)
        self.text_embedding = nn.Embedding(config.vocabulary, config.und.dim)
        self.vision = intern_vit(vision)
        self.projector = Projector(
            vision_dim=vision.dim * vision.merge**2, dim=config.und.dim, eps=vision.projector_eps
        )
        self.text_scale = config.text_scale
        self.side = vision.size // vision.patch
        self.patch = vision.patch
        self.merge = vision.merge
        self.arrangement = InternArrangement((self.side // self.merge) ** 2)

    def forward(self, inputs: Inputs) -> Stream:
        """The understanding stream of a batch.

        Raises:
            ValueError: If a view is not the square of patches the tower was built for, `pixel_values` does not hold
                that many patches, or `input_ids` is shorter than the views.
        """
        views = self.arrangement.spans(inputs.image_grid)
        if any(grid != (self.side, self.side) for grid in inputs.image_grid):
            raise ValueError(
                f"image_grid: expected {self.side} rows and columns of patches in every view, got {inputs.image_grid}"
            )
        expect_shape("pixel_values", inputs.pixel_values.shape[1:], (len(views) * self.side**2, 3 * self.patch**2))
        length = views[-1].stop if views else 0
        if inputs.input_ids.shape[1] < length:
            raise ValueError(
                f"input_ids: expected at least {length} tokens for {len(views)} views, got {inputs.input_ids.shape[1]}"
            )
        text = self.text_embedding(inputs.input_ids[:, length:]) * self.text_scale
        positions, following = self.positions(inputs.und_valid, inputs.image_grid)
        return Stream(torch.cat([self.images(inputs), text], dim=1), inputs.und_valid, positions, following)

    def positions(
        self, valid: Bool[Tensor, "batch seq"], image_grid: tuple[tuple[int, int], ...]
    ) -> tuple[Int[Tensor, "1 batch seq"], Int[Tensor, " batch"]]:
        """Rotary positions, and the position after the last valid token: valid tokens are counted from 0."""
        return self.arrangement.steps(image_grid, length=valid.shape[1], device=valid.device).positions(valid)

    def images(self, inputs: Inputs) -> Float[Tensor, "batch seq dim"]:
        """The projected output of the vision tower, all views of a sample one after another."""
        pixels = inputs.pixel_values.to(self.text_embedding.weight.dtype)
        return image_tokens(
            pixels, tower=self.vision, projector=self.projector, side=self.side, patch=self.patch, merge=self.merge
        )


@dataclass(frozen=True)
class InternArrangement:
    """Views of `tokens` each with nothing between them, then the text; every token advances by one."""

    tokens: int

    def spans(self, image_grid: tuple[tuple[int, int], ...]) -> list[Span]:
        """Where each view lies in the stream."""
        return spans([self.tokens] * len(image_grid), around=0)

    def steps(
        self,
        image_grid: tuple[tuple[int, int], ...],  # noqa: ARG002  the other backbone's positions depend on it
        *,
        length: int,
        device: torch.device | None = None,
    ) -> Steps:
        """How positions run along a stream of `length` tokens."""
        ones = torch.ones(length, device=device, dtype=torch.long)
        return Steps(advance=ones, offsets=torch.zeros_like(ones)[None])


def image_tokens(
    pixels: Float[Tensor, "batch patches values"],
    *,
    tower: nn.Module,
    projector: nn.Module,
    side: int,
    patch: int,
    merge: int,
) -> Float[Tensor, "batch seq dim"]:
    """Patches through InternViT, four neighbours to one token, through the projector; views one after another.

    Args:
        pixels: Patches of `patch`x`patch` pixels, row by row, `side`x`side` to a view.
        tower: The vision tower.
        projector: From merged patches to the width of the understanding expert.
        side: Patches in a row of a view.
        patch: Side of a patch in pixels.
        merge: Side, in patches, of the square that becomes one token.
    """
    images = rearrange(
        pixels,
        "batch (view rows columns) (channel y x) -> (batch view) channel (rows y) (columns x)",
        rows=side,
        columns=side,
        channel=3,
        y=patch,
    )
    patches = tower(images).last_hidden_state[:, 1:]
    shuffled = rearrange(
        patches,
        "image (rows y columns x) dim -> image (rows columns) (y x dim)",
        rows=side // merge,
        y=merge,
        x=merge,
    )
    return rearrange(projector(shuffled), "(batch view) token dim -> batch (view token) dim", batch=pixels.shape[0])


class Projector(nn.Module):
    """From the vision tower's width to the understanding expert's: layer norm, linear, GELU, linear.

    Args:
        vision_dim: Width of a merged image token.
        dim: Width of the understanding expert.
        eps: Epsilon of the layer norm.
    """

    def __init__(self, *, vision_dim: int, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_dim, eps)
        self.hidden = nn.Linear(vision_dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "*lead vision_dim"]) -> Float[Tensor, "*lead dim"]:
        """Image tokens as the understanding expert reads them."""
        return self.output(nn.functional.gelu(self.hidden(self.norm(tokens))))
