"""Qwen3-VL's vision tower for views whose size is known: everything that depends on the grid alone is computed once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moteur.recipes.config import Qwen3VLVision
from moteur.runtime.choice import Linears
from moteur.runtime.linear import Linear

_EPS = 1e-6  # of every layer norm in this tower
_Grid = tuple[int, int]


@dataclass(frozen=True)
class Tables:
    """What a grid of patches decides: the learned positions resampled to it, and its rotary angles."""

    positions: Float[Tensor, "patch dim"]
    cos: Float[Tensor, "patch 1 1 head_dim"]
    sin: Float[Tensor, "patch 1 1 head_dim"]


@dataclass(frozen=True)
class _Block:
    norm1: nn.LayerNorm
    projection: Linear
    output: Linear
    norm2: nn.LayerNorm
    up: Linear
    down: Linear


class FixedGridTower:
    """The tower of `transformers`, rearranged: all views of a batch in one attention, nothing read back from a device.

    A still image reaches the tower as two equal frames; the two taps of the patch embedding are added once, and only
    the first frame is read.

    Args:
        tower: The trained tower; read, never written.
        sizes: Its sizes.
        linears: Builds the maps.
        rows: About how many patches a call brings.
        still: Images stand still; False reads every frame.
    """

    def __init__(
        self, tower: nn.Module, sizes: Qwen3VLVision, linears: Linears, *, rows: int, still: bool = True
    ) -> None:
        self.sizes, self.linears, self.still = sizes, linears, still
        weights = cast("Mapping[str, Tensor]", tower.state_dict())

        def linear(name: str, rows: int = rows) -> Linear:
            return linears.linear(weights[f"{name}.weight"], weights[f"{name}.bias"], rows=rows)

        def norm(name: str) -> nn.LayerNorm:
            made = nn.LayerNorm(weights[f"{name}.weight"].shape, _EPS, device=linears.device, dtype=linears.dtype)
            made.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
            return made.requires_grad_(requires_grad=False)

        taps = weights["patch_embed.proj.weight"]
        joined = taps.double().sum(dim=2) if still else taps
        self.embed = linears.linear(joined.flatten(1), weights["patch_embed.proj.bias"], rows=rows)
        self.blocks = [
            _Block(
                norm1=norm(f"blocks.{index}.norm1"),
                projection=linear(f"blocks.{index}.attn.qkv"),
                output=linear(f"blocks.{index}.attn.proj"),
                norm2=norm(f"blocks.{index}.norm2"),
                up=linear(f"blocks.{index}.mlp.linear_fc1"),
                down=linear(f"blocks.{index}.mlp.linear_fc2"),
            )
            for index in range(sizes.depth)
        ]
        self.merger_norm = norm("merger.norm")
        merged = max(1, rows // sizes.merge**2)
        self.merger = [linear("merger.linear_fc1", merged), linear("merger.linear_fc2", merged)]
        self.table = weights["pos_embed.weight"].detach().clone()
        self._tables: dict[_Grid, Tables] = {}
        self._run: Callable[[_Block, Tensor, Tables, int], Tensor] = _run_block

    def __call__(
        self, pixels: Float[Tensor, "image patch values"], grid: tuple[int, int]
    ) -> Float[Tensor, "image token dim"]:
        """Merged image tokens of views that share a grid.

        Args:
            pixels: Patches in the order of Qwen3-VL's processor, (channel, frame, row, column) inside a patch.
            grid: Rows and columns of patches.
        """
        sizes, tables = self.sizes, self.tables(grid)
        if self.still:
            pixels = pixels.unflatten(-1, (3, sizes.patch_frames, -1))[:, :, :, 0].flatten(-2)
        x = self.embed(pixels.to(self.linears.dtype)) + tables.positions
        for block in self.blocks:
            x = self._run(block, x, tables, self.sizes.heads)
        x = self.merger_norm(x).reshape(x.shape[0], -1, sizes.merge**2 * sizes.dim)
        return self.merger[1](self.merger[0].gelu(x, "none"))

    def compile(self, backend: str) -> None:
        """Compile the block; all blocks share the graph."""
        self._run = torch.compile(_run_block, fullgraph=True, backend=backend)

    def tables(self, grid: tuple[int, int]) -> Tables:
        """The tables of a grid, made on first use."""
        if grid not in self._tables:
            self._tables[grid] = self._make_tables(*grid)
        return self._tables[grid]

    def _make_tables(self, rows: int, columns: int) -> Tables:
        sizes, device = self.sizes, self.linears.device
        side = int(sizes.positions**0.5)
        square = rearrange(self.table.float(), "(row column) dim -> 1 dim row column", row=side)
        spread = F.interpolate(square, (rows, columns), mode="bilinear", align_corners=True)[0]
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        head_dim = sizes.dim // sizes.heads
        exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
        frequencies = 1.0 / sizes.rope_base**exponents
        angles = torch.cat([self._merged(place[None])[:, 0, None] * frequencies for place in (row, column)], dim=-1)
        cos, sin = angles.cos().repeat(1, 2)[:, None, None], angles.sin()
        signed = torch.cat([-sin, sin], dim=-1)[:, None, None]
        return Tables(
            positions=self._merged(spread).to(device, self.linears.dtype), cos=cos.to(device), sin=signed.to(device)
        )

    def _merged(self, values: Tensor) -> Tensor:
        """Patches in the tower's order: those of one merged square next to each other."""
        merge = self.sizes.merge
        return rearrange(values, "dim (row y) (column x) -> (row column y x) dim", y=merge, x=merge)


def _run_block(
    block: _Block, x: Float[Tensor, "image patch dim"], tables: Tables, heads: int
) -> Float[Tensor, "image patch dim"]:
    """One block over all images at once, each attending to itself."""
    parts = block.projection(block.norm1(x)).unflatten(-1, (3, heads, -1))
    turned, value = parts[:, :, :2], parts[:, :, 2]
    rolled = turned.roll(turned.shape[-1] // 2, dims=-1)
    turned = torch.addcmul(turned * tables.cos, rolled, tables.sin).to(x.dtype)
    attended = scaled_dot_product_attention(
        turned[:, :, 0].transpose(1, 2), turned[:, :, 1].transpose(1, 2), value.transpose(1, 2)
    )
    x = block.output.plus(attended.transpose(1, 2).flatten(2), x)
    return block.down.plus(block.up.gelu(block.norm2(x), "tanh"), x)
