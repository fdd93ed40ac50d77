"""The understanding stream of the views that are there, and of the words that were said."""

import copy
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moteur.recipes.backbones import InternVL3, Qwen3VL
from moteur.recipes.backbones.internvl3 import image_tokens
from moteur.recipes.backbones.stream import Arrangement
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision
from moteur.runtime.choice import Linears
from moteur.runtime.vision import FixedGridTower

_Grid = tuple[tuple[int, int], ...]


class Understanding:
    """Pixels and token ids to the tokens of the understanding expert, on the kernels of `linears`.

    Args:
        backbone: The trained backbone; read, never written. The text embedding is shared with it.
        config: The model's sizes.
        linears: Builds the maps.
        rows: About how many patches a call brings.
        still: Images stand still, see `FixedGridTower`.
    """

    def __init__(
        self, backbone: Qwen3VL | InternVL3, config: InternVLAA1Config, linears: Linears, *, rows: int, still: bool
    ) -> None:
        self.arrangement: Arrangement = backbone.arrangement
        self.text_scale, self.dtype = backbone.text_scale, linears.dtype
        self.embedding = backbone.text_embedding.weight.detach()
        vision = config.vision
        self._images: Callable[[Tensor, _Grid], list[Tensor]]
        self._tower: FixedGridTower | None = None
        if isinstance(vision, Qwen3VLVision):
            self._tower = FixedGridTower(backbone.vision, vision, linears, rows=rows, still=still)
            self._images = self._qwen
        else:
            assert isinstance(backbone, InternVL3)
            self._intern_tokens = partial(
                image_tokens,
                tower=_on(linears, backbone.vision, rows=rows),
                projector=_on(linears, backbone.projector, rows=max(1, rows // vision.merge**2)),
                side=backbone.side,
                patch=backbone.patch,
                merge=backbone.merge,
            )
            self._images = self._intern

    def __call__(
        self, ids: Int[Tensor, "batch seq"], pixels: Float[Tensor, "batch patch values"], grid: _Grid
    ) -> Float[Tensor, "batch seq dim"]:
        """Tokens of the views of `grid`, whose patches are `pixels`, and of the text behind them."""
        tokens = F.embedding(ids, self.embedding).to(self.dtype)
        views = self.arrangement.spans(grid)
        text = views[-1].stop if views else 0
        if self.text_scale != 1:
            tokens[:, text:].mul_(self.text_scale)
        for image, view in zip(self._images(pixels, grid), views, strict=True):
            tokens[:, view.first : view.last].copy_(image)
        return tokens

    def compile(self, backend: str) -> None:
        """Compile the blocks of the vision tower, where it is ours."""
        if self._tower is not None:
            self._tower.compile(backend)

    def _qwen(self, pixels: Tensor, grid: _Grid) -> list[Tensor]:
        assert self._tower is not None
        batch = pixels.shape[0]
        parts = pixels.split([rows * columns for rows, columns in grid], dim=1)
        if len(set(grid)) == 1:
            alike = pixels.reshape(batch * len(grid), -1, pixels.shape[-1])
            images = self._tower(alike, grid[0])
            return list(images.unflatten(0, (batch, len(grid))).unbind(dim=1))
        tower = self._tower
        return [tower(part, sides) for part, sides in zip(parts, grid, strict=True)]

    def _intern(self, pixels: Tensor, grid: _Grid) -> list[Tensor]:
        if not grid:
            return []
        images = self._intern_tokens(pixels.to(self.dtype))
        return list(images.unflatten(1, (len(grid), -1)).unbind(dim=1))


def _on(linears: Linears, module: nn.Module, *, rows: int) -> nn.Module:
    """A copy of a module, every `nn.Linear` in it replaced by the same map from `linears`."""
    twin = copy.deepcopy(module).to(linears.device, linears.dtype).requires_grad_(requires_grad=False)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                bias = child.bias if child.bias is not None else None  # pyright: ignore[reportUnnecessaryComparison]
                setattr(parent, name, linears.linear(child.weight.detach(), bias, rows=rows))
    return twin
