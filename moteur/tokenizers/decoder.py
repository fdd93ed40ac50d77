"""The decoder of the Cosmos CI8x8 image tokenizer: continuous latents to images."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.tokenizers.haar import haar_images
from moteur.tokenizers.layers import Level, Middle, swish
from moteur.tokenizers.sizes import check_sizes


class CosmosDecoder(nn.Module):
    """Latents to images in [-1, 1], eight times larger in height and width at the released sizes.

    The mirror of `CosmosEncoder`: a 1 x 1 convolution to `z_channels`, a 3 x 3 convolution, attention in the middle,
    one level per multiplier from the last to the first (the first `downsamplings` to run each end by doubling
    height and width; each has one residual block more than in the encoder), group norm, SiLU, a 3 x 3
    convolution, and Haar patches put back together. The defaults are the released Cosmos-Tokenizer-CI8x8.

    `state_dict` keys are those of the released `decoder.jit`; levels are numbered as in the encoder, so the last
    one runs first. Nothing is downloaded; initial weights as in `CosmosEncoder`.

    Args:
        channels: Width that the multipliers multiply.
        multipliers: Width of each level, in `channels`, in the encoder's order.
        residual_blocks: Residual blocks per level of the encoder; the decoder has one more.
        patch: Side of the Haar patches, a power of two.
        downsamplings: How many levels double height and width.
        z_channels: Channels before the first 3 x 3 convolution.
        latent_channels: Channels of the latent.
        image_channels: Channels of the image.
        groups: Groups of every group norm; must divide every width.
        eps: Added to the variance in every group norm.
        frozen: Build with `requires_grad=False` everywhere; gradients still reach the latents. `False` to train it.
        device: Where the parameters live; `"meta"` allocates nothing.
        dtype: Of the parameters. Latents must come in the same dtype.

    Raises:
        ValueError: Sizes that make no tokenizer (see the message).

    Source: https://arxiv.org/abs/2501.03575, section 4; https://huggingface.co/nvidia/Cosmos-Tokenizer-CI8x8.

    >>> decoder = CosmosDecoder(channels=32, multipliers=(1, 1), residual_blocks=1)
    >>> decoder(torch.zeros(2, 16, 8, 4)).shape
    torch.Size([2, 3, 64, 32])
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 4, 4),
        residual_blocks: int = 2,
        patch: int = 4,
        downsamplings: int = 1,
        z_channels: int = 16,
        latent_channels: int = 16,
        image_channels: int = 3,
        groups: int = 32,
        eps: float = 1e-6,
        frozen: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(
            channels=channels,
            multipliers=multipliers,
            residual_blocks=residual_blocks,
            patch=patch,
            downsamplings=downsamplings,
            z_channels=z_channels,
            latent_channels=latent_channels,
            image_channels=image_channels,
            groups=groups,
        )
        super().__init__()
        self.patch = patch
        self.latent_channels = latent_channels
        self.compression = patch * 2**downsamplings
        self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1, device=device, dtype=dtype)
        self.decoder = _Trunk(
            out_channels=image_channels * patch**2,
            channels=channels,
            multipliers=multipliers,
            residual_blocks=residual_blocks,
            upsamplings=downsamplings,
            z_channels=z_channels,
            groups=groups,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        self.requires_grad_(not frozen)

    def forward(
        self, latents: Float[Tensor, "batch channel rows columns"]
    ) -> Float[Tensor, "batch image_channel height width"]:
        """Decode latents of any height and width.

        Values are near [-1, 1] but **not clamped** to it, so that gradients survive: clamp before showing them.

        Raises:
            ValueError: Not four axes of floating point, another number of channels, or no rows or columns.
        """
        if latents.ndim != 4 or not latents.is_floating_point():  # noqa: PLR2004 -- batch, channel, rows, columns
            raise ValueError(
                "latents: expected floating point of shape (batch, channel, rows, columns), "
                f"got {latents.dtype} of {tuple(latents.shape)}"
            )
        channels, rows, columns = latents.shape[1:]
        if channels != self.latent_channels:
            raise ValueError(
                f"latents: expected {self.latent_channels} channels, got {channels} of {tuple(latents.shape)}"
            )
        if not rows or not columns:
            raise ValueError(f"latents: expected at least one row and column, got {rows} x {columns}")
        return haar_images(self.decoder(self.post_quant_conv(latents)), patch=self.patch)


class _Trunk(nn.Module):
    """Everything between the first 1 x 1 convolution and the Haar patches, under the names that checkpoints use."""

    def __init__(
        self,
        *,
        out_channels: int,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        upsamplings: int,
        z_channels: int,
        groups: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        widths.append(widths[-1])
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1, device=device, dtype=dtype)
        self.mid = Middle(widths[-1], groups=groups, eps=eps, device=device, dtype=dtype)
        self.up = nn.ModuleList(
            Level(
                widths[index + 1],
                widths[index],
                blocks=residual_blocks + 1,
                groups=groups,
                eps=eps,
                upsample=index >= len(multipliers) - upsamplings,
                device=device,
                dtype=dtype,
            )
            for index in range(len(multipliers))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps, device=device, dtype=dtype)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1, device=device, dtype=dtype)

    def forward(self, z: Float[Tensor, "batch z_channel rows columns"]) -> Float[Tensor, "batch _ height width"]:
        """Map the features after the first 1 x 1 convolution to Haar patches."""
        features = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            features = level(features)
        return self.conv_out(swish(self.norm_out(features)))
