"""The layers both halves of the Cosmos tokenizer are made of."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def swish(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` times its sigmoid, $x σ(x)$, in two steps.

    `torch.nn.functional.silu` is the same function rounded otherwise; through the decoder that difference alone
    grows to 1e-5 of an image in [-1, 1].
    """
    return x * torch.sigmoid(x)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after group norm and SiLU, added to the input.

    $y = S x + C_2(σ(G_2(C_1(σ(G_1(x))))))$ with $S$ the identity, or a 1 x 1 convolution where the width changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps, device=device, dtype=dtype)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, device=device, dtype=dtype)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps, device=device, dtype=dtype)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, device=device, dtype=dtype)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1, device=device, dtype=dtype)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ height width"]:
        """Map features to features of the same height and width."""
        residual = self.conv1(swish(self.norm1(x)))
        residual = self.conv2(swish(self.norm2(residual)))
        return self.nin_shortcut(x) + residual


class SelfAttention(nn.Module):
    """One head of attention over all places of the feature map, as wide as the features, added to the input."""

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps, device=device, dtype=dtype)
        self.q = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.k = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.v = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.proj_out = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Let every place look at every place, whatever the size of the map.

        Written out rather than handed to `scaled_dot_product_attention`: this order of rounding is the released
        graph's, and the decoder magnifies a rounding error about twentyfold. Memory grows with the square of the
        number of places.
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

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups=groups, eps=eps, device=device, dtype=dtype)
        self.attn_1 = SelfAttention(channels, groups=groups, eps=eps, device=device, dtype=dtype)
        self.block_2 = ResidualBlock(channels, channels, groups=groups, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Map features to features of the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """A 3 x 3 convolution of stride two; the one row and column of zeros it needs are added below and at the right."""

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, device=device, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height//2 width//2"]:
        """Halve the height and width."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every place repeated 2 x 2, then a 3 x 3 convolution."""

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel 2*height 2*width"]:
        """Double the height and width."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, then, where asked, a change to the next one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int,
        groups: int,
        eps: float,
        downsample: bool = False,
        upsample: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(
                in_channels if index == 0 else out_channels,
                out_channels,
                groups=groups,
                eps=eps,
                device=device,
                dtype=dtype,
            )
            for index in range(blocks)
        )
        self.downsample = Downsample(out_channels, device=device, dtype=dtype) if downsample else nn.Identity()
        self.upsample = Upsample(out_channels, device=device, dtype=dtype) if upsample else nn.Identity()

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch _ _ _"]:
        """Apply the blocks in order, then the change of resolution if there is one."""
        for block in self.block:
            x = block(x)
        return self.upsample(self.downsample(x))
