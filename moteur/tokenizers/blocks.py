"""Sizes and building blocks shared by the Cosmos encoder and decoder."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from moteur.tokenizers.haar import haar_levels


@dataclass(frozen=True, kw_only=True)
class CosmosSize:
    """Sizes of a Cosmos continuous image tokenizer, shared by encoder and decoder.

    Attributes:
        channels: Base width, and the width of the encoder's first convolution.
        multipliers: Width of each level, in units of `channels`, in the encoder's order.
        residual_blocks: Residual blocks per level of the encoder; the decoder has one more.
        patch: Side of the Haar patches in pixels, a power of two.
        downsamplings: Number of levels that halve (in the decoder: double) height and width.
        z_channels: Channels between the last 3 x 3 and the 1 x 1 convolution of the encoder.
        groups: Groups of every group norm; must divide every width, or the modules are refused by PyTorch.
        eps: Added to the variance in every group norm.
        latent_channels: Channels of the latent.

    Raises:
        ValueError: A size is out of range or does not fit the others.

    Examples:
        >>> CosmosSize.ci8x8().compression
        8
        >>> from dataclasses import replace
        >>> replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1)).multipliers
        (1, 1)
    """

    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    patch: int
    downsamplings: int
    z_channels: int
    groups: int
    eps: float
    latent_channels: int

    def __post_init__(self) -> None:
        for name in ("channels", "residual_blocks", "z_channels", "groups", "eps", "latent_channels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected one or more positive numbers, got {self.multipliers}")
        haar_levels(self.patch)
        if not 0 <= self.downsamplings <= len(self.multipliers):
            levels = len(self.multipliers)
            raise ValueError(f"downsamplings: expected 0 to {levels}, the number of levels, got {self.downsamplings}")

    @classmethod
    def ci8x8(cls) -> "CosmosSize":
        """Sizes of the released Cosmos-Tokenizer-CI8x8."""
        return cls(
            channels=128,
            multipliers=(2, 4, 4),
            residual_blocks=2,
            patch=4,
            downsamplings=1,
            z_channels=16,
            groups=32,
            eps=1e-6,
            latent_channels=16,
        )

    @property
    def patch_channels(self) -> int:
        """Channels of the Haar patches of an RGB image."""
        return 3 * self.patch**2

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, in the encoder's order."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def compression(self) -> int:
        """Side, in pixels, of the square that one latent stands for."""
        return self.patch * 2**self.downsamplings


class Factory(TypedDict):
    """Where and in which dtype parameters are created."""

    device: torch.device | str | None
    dtype: torch.dtype | None


def swish(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """SiLU, computed in two steps as in the released graph.

    `torch.nn.functional.silu` rounds differently; through the decoder that difference grows to 1e-5 of an image in
    [-1, 1].
    """
    return x * torch.sigmoid(x)


def group_norm(channels: int, size: CosmosSize, factory: Factory) -> nn.GroupNorm:
    """Group norm over this many channels."""
    return nn.GroupNorm(size.groups, channels, size.eps, **factory)


def reset_layers(model: nn.Module) -> None:
    """Draw the weights of all layers anew, in the order in which they were built."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.GroupNorm):
            layer.reset_parameters()


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after group norm and SiLU, added to the input.

    $y = S x + C_2(σ(G_2(C_1(σ(G_1(x))))))$, where $S$ is the identity, or a 1 x 1 convolution if the width changes.
    """

    def __init__(self, in_channels: int, out_channels: int, size: CosmosSize, factory: Factory) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, size, factory)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, **factory)
        self.norm2 = group_norm(out_channels, size, factory)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, **factory)

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ height width"]:
        """Map features to features of the same height and width."""
        residual = self.conv1(swish(self.norm1(x)))
        residual = self.conv2(swish(self.norm2(residual)))
        return self.nin_shortcut(x) + residual


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map, added to the input."""

    def __init__(self, channels: int, size: CosmosSize, factory: Factory) -> None:
        super().__init__()
        self.norm = group_norm(channels, size, factory)
        self.q = nn.Conv2d(channels, channels, 1, **factory)
        self.k = nn.Conv2d(channels, channels, 1, **factory)
        self.v = nn.Conv2d(channels, channels, 1, **factory)
        self.proj_out = nn.Conv2d(channels, channels, 1, **factory)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Attend over a map of any size; memory grows with the square of the number of positions.

        Written out instead of calling `scaled_dot_product_attention`: this is the rounding order of the released
        graph, and the decoder magnifies a rounding error about twentyfold.
        """
        normed = self.norm(x)
        query = rearrange(self.q(normed), "batch channel height width -> batch (height width) channel")
        key = rearrange(self.k(normed), "batch channel height width -> batch channel (height width)")
        value = rearrange(self.v(normed), "batch channel height width -> batch channel (height width)")
        weights = torch.softmax(query @ key * x.shape[1] ** -0.5, dim=-1)
        mixed = rearrange(
            value @ weights.mT, "batch channel (height width) -> batch channel height width", height=x.shape[2]
        )
        return x + self.proj_out(mixed)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, channels: int, size: CosmosSize, factory: Factory) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, size, factory)
        self.attn_1 = SelfAttention(channels, size, factory)
        self.block_2 = ResidualBlock(channels, channels, size, factory)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Map features to features of the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """3 x 3 convolution of stride two, padded with one row of zeros at the bottom and one column at the right."""

    def __init__(self, channels: int, factory: Factory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, **factory)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height//2 width//2"]:
        """Halve height and width."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by two, then a 3 x 3 convolution."""

    def __init__(self, channels: int, factory: Factory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel 2*height 2*width"]:
        """Double height and width."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, then an optional change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: CosmosSize,
        factory: Factory,
        *,
        blocks: int,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * blocks]
        self.block = nn.ModuleList(ResidualBlock(before, after, size, factory) for before, after in pairwise(widths))
        self.downsample = Downsample(out_channels, factory) if downsample else nn.Identity()
        self.upsample = Upsample(out_channels, factory) if upsample else nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ _ _"]:
        """Apply the blocks in order, then change the resolution."""
        for block in self.block:
            x = block(x)
        return self.upsample(self.downsample(x))
