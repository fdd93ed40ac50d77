"""Qwen3-VL, the understanding backbone of the 3B variant: vision tower, text embedding, M-RoPE positions."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot import prepare_rotation
from moteur.recipes.backbones.vision import VisionBlock, normalised
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision

_EPS = 1e-6  # of every layer norm in the tower


class Qwen3VL(nn.Module):
    """Pictures to tokens: for each view `<vision_start>`, its image tokens, `<vision_end>`.

    A mark advances by one on all three position axes; an image occupies its grid on the height and width axes and
    advances by the longer side. DeepStack features, which the released model computes and never reads, are left out.
    Source: the Qwen3-VL technical report, for the tower and M-RoPE.

    Attributes:
        text_embedding: Embedding of the instruction and the marks.
        advance: For `understanding_stream`, with `offsets`.
    """

    marks: Tensor
    advance: Tensor
    offsets: Tensor

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        vision, ids = config.vision, config.token_ids
        assert isinstance(vision, Qwen3VLVision)
        self.sizes = vision
        self.side = vision.fitted(config.frame_size)
        grid = self.side // vision.patch
        self.text_embedding = nn.Embedding(config.vocabulary, config.und.dim)
        self.vision = Qwen3VLTower(vision, dim=config.und.dim, grid=grid)
        merged = grid // vision.merge
        place = torch.arange(merged)
        rows, columns = place.repeat_interleave(merged), place.repeat(merged)
        offsets = F.pad(torch.stack([torch.zeros_like(rows), rows, columns]), (1, 1))
        advance = torch.tensor([1, *[0] * (merged**2 - 1), merged, 1])
        self.register_buffer("marks", torch.tensor([ids.vision_start, ids.vision_end]), persistent=False)
        self.register_buffer("advance", advance, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, frames: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch view token dim"]:
        """Tokens of pictures in [0, 1]."""
        batch, views = frames.shape[:2]
        patches = self.patchify(frames).to(self.text_embedding.weight.dtype)
        images = self.vision(patches.flatten(0, 1)).unflatten(0, (batch, views))
        start, end = self.text_embedding(self.marks).expand(batch, views, -1, -1).split(1, dim=2)
        return torch.cat([start, images, end], dim=2)

    def patchify(self, frames: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch view patch values"]:
        """Normalised patches in merge order, each repeated for every frame that a patch spans.

        Frames are resized bicubically with antialiasing, in floating point: nothing is rounded to 8 bits or clamped, so
        values overshoot a little beside sharp edges. The image processor of `transformers` for tensors computes the
        same from floats; the one for PIL images rounds and clamps.
        """
        sizes = self.sizes
        images = frames.flatten(0, 1)
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        merged = rearrange(
            normalised(images, sizes.mean, sizes.std),
            "(batch view) channel (rows my y) (columns mx x) -> batch view (rows columns my mx) channel y x",
            batch=frames.shape[0],
            my=sizes.merge,
            mx=sizes.merge,
            y=sizes.patch,
            x=sizes.patch,
        )
        return repeat(
            merged, "batch view patch channel y x -> batch view patch (channel frame y x)", frame=sizes.patch_frames
        )


class Qwen3VLTower(nn.Module):
    """Qwen3-VL's vision tower for square images of one size. Parameters have the names of `transformers`.

    Args:
        sizes: Sizes of the tower.
        dim: Width of the merged image tokens.
        grid: Patches along a side of an image.
    """

    def __init__(self, sizes: Qwen3VLVision, *, dim: int, grid: int) -> None:
        super().__init__()
        self.sizes, self.grid = sizes, grid
        self.patch_embed = nn.ModuleDict({"proj": PatchProjection(sizes)})
        self.pos_embed = nn.Embedding(sizes.positions, sizes.dim)
        self.blocks = nn.ModuleList(
            VisionBlock(dim=sizes.dim, heads=sizes.heads, mlp_dim=sizes.mlp_dim, norm_eps=_EPS)
            for _ in range(sizes.depth)
        )
        merged = sizes.dim * sizes.merge**2
        self.merger = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(sizes.dim, _EPS),
                "linear_fc1": nn.Linear(merged, merged),
                "linear_fc2": nn.Linear(merged, dim),
            }
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a normal distribution of standard deviation 0.02; biases are zero, gains one."""
        for module in self.modules():
            if isinstance(module, nn.Linear | PatchProjection | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, patches: Float[Tensor, "image patch values"]) -> Float[Tensor, "image token dim"]:
        """Merged image tokens.

        Args:
            patches: In merge order: patches of one merged square next to each other; (channel, frame, row, column)
                inside a patch.
        """
        sizes, merger = self.sizes, self.merger
        x = self.patch_embed["proj"](patches) + self._positions().to(patches.dtype)
        rotation = self._rotation()
        for block in self.blocks:
            x = block(x, rotation)
        x = merger["norm"](x).unflatten(1, (-1, sizes.merge**2)).flatten(2)
        return merger["linear_fc2"](F.gelu(merger["linear_fc1"](x)))

    def _positions(self) -> Float[Tensor, "patch dim"]:
        """The learned positions, resampled bilinearly to the grid, in float32 or wider."""
        side = round(self.sizes.positions**0.5)
        weight = self.pos_embed.weight
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        square = rearrange(weight, "(row column) dim -> 1 dim row column", row=side)
        spread = F.interpolate(square, (self.grid, self.grid), mode="bilinear", align_corners=True)[0]
        return self._merge_order(spread).mT

    def _rotation(self) -> tuple[Float[Tensor, "1 patch 1 head_dim"], Float[Tensor, "1 patch 1 head_dim"]]:
        """Rotary angles in float32, as in `transformers`: half of the frequencies follow the row, half the column."""
        spread = self.sizes.dim // self.sizes.heads // 2
        device = self.pos_embed.weight.device
        place = torch.arange(self.grid, device=device).expand(self.grid, self.grid)
        places = self._merge_order(torch.stack([place.T, place]))
        exponents = torch.arange(0, spread, 2, device=device).float() / spread
        frequencies = 1.0 / self.sizes.rope_base**exponents
        angles = (places[:, :, None] * frequencies).transpose(0, 1).flatten(1)
        angles = angles.repeat(1, 2)[None]
        return prepare_rotation((angles.cos(), angles.sin()))

    def _merge_order(self, values: Tensor) -> Tensor:
        merge = self.sizes.merge
        return rearrange(values, "dim (row y) (column x) -> dim (row column y x)", y=merge, x=merge)


class PatchProjection(nn.Module):
    """Linear map of whole patches, with the parameters of the convolution that it equals."""

    def __init__(self, sizes: Qwen3VLVision) -> None:
        super().__init__()
        kernel = (sizes.patch_frames, sizes.patch, sizes.patch)
        convolution = nn.Conv3d(3, sizes.dim, kernel, stride=kernel)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: Float[Tensor, "image patch values"]) -> Float[Tensor, "image patch dim"]:
        """Apply the map to every patch, (channel, frame, row, column) in one axis."""
        return F.linear(patches, self.weight.flatten(1), self.bias)
