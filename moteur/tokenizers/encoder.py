"""The encoder of the Cosmos CI8x8 image tokenizer: images to continuous latents."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.tokenizers.haar import haar_patches
from moteur.tokenizers.images import check_images, range_is_free_to_check
from moteur.tokenizers.layers import Level, Middle, swish
from moteur.tokenizers.sizes import check_sizes


class CosmosEncoder(nn.Module):
    """Images in [-1, 1] to latents, eight times smaller in height and width at the released sizes.

    Haar patches, a 3 x 3 convolution, one level of residual blocks per multiplier (the first `downsamplings` of
    them each end by halving height and width), attention in the middle, group norm, SiLU, a 3 x 3 convolution to
    `z_channels`, a 1 x 1 convolution to `latent_channels`. The defaults are the released Cosmos-Tokenizer-CI8x8.
    The latent is the output itself: this tokenizer has no distribution to sample from, and no scale factor.

    `state_dict` keys are those of the released `encoder.jit`, so weights load with `load_state_dict`. The constructor
    downloads nothing; weights start as PyTorch initialises its convolutions (uniform within 1/√fan-in) and
    group norms (one, zero).

    Args:
        channels: Width that the multipliers multiply, and of the first convolution.
        multipliers: Width of each level, in `channels`.
        residual_blocks: Residual blocks per level.
        patch: Side of the Haar patches, a power of two.
        downsamplings: How many levels halve height and width.
        z_channels: Channels after the last 3 x 3 convolution.
        latent_channels: Channels of the latent.
        image_channels: Channels of the image.
        groups: Groups of every group norm; must divide every width.
        eps: Added to the variance in every group norm.
        frozen: Build with `requires_grad=False` everywhere. Pass `False` to train it.
        device: Where the parameters live; `"meta"` allocates nothing.
        dtype: Of the parameters. Images must come in the same dtype.

    Raises:
        ValueError: Sizes that make no tokenizer (see the message).

    Source: https://arxiv.org/abs/2501.03575, section 4; https://huggingface.co/nvidia/Cosmos-Tokenizer-CI8x8.

    >>> encoder = CosmosEncoder(channels=32, multipliers=(1, 1), residual_blocks=1)
    >>> encoder(torch.zeros(2, 3, 64, 32)).shape
    torch.Size([2, 16, 8, 4])
    >>> encoder.compression
    8
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
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.compression = patch * 2**downsamplings
        self.encoder = _Trunk(
            in_channels=image_channels * patch**2,
            channels=channels,
            multipliers=multipliers,
            residual_blocks=residual_blocks,
            downsamplings=downsamplings,
            z_channels=z_channels,
            groups=groups,
            eps=eps,
            device=device,
            dtype=dtype,
        )
        self.quant_conv = nn.Conv2d(z_channels, latent_channels, 1, device=device, dtype=dtype)
        self.requires_grad_(not frozen)

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch latent_channel rows columns"]:
        """Encode images; rows and columns are height and width divided by `compression`.

        The range is checked where looking is free: on the CPU, outside `torch.compile`, export and tracing. Elsewhere
        an image out of range gives a meaningless latent; call `check_images` where images arrive.

        Raises:
            ValueError: Not four axes of floating point, another number of channels, height or width not a positive
                multiple of `compression`, or (on the CPU, see above) values outside [-1, 1].
        """
        if images.ndim != 4 or not images.is_floating_point():  # noqa: PLR2004 -- batch, channel, height, width
            raise ValueError(
                "images: expected floating point of shape (batch, channel, height, width), "
                f"got {images.dtype} of {tuple(images.shape)}"
            )
        channels, height, width = images.shape[1:]
        if channels != self.image_channels:
            raise ValueError(
                f"images: expected {self.image_channels} channels, got {channels} of {tuple(images.shape)}"
            )
        if not height or not width or height % self.compression or width % self.compression:
            raise ValueError(
                f"images: height and width must be positive multiples of {self.compression}, got {height} x {width}"
            )
        if range_is_free_to_check(images):
            check_images(images)
        return self.quant_conv(self.encoder(haar_patches(images, patch=self.patch)))


class _Trunk(nn.Module):
    """Everything between the Haar patches and the last 1 x 1 convolution, under the names that checkpoints use."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        downsamplings: int,
        z_channels: int,
        groups: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1, device=device, dtype=dtype)
        self.down = nn.ModuleList(
            Level(
                widths[index],
                widths[index + 1],
                blocks=residual_blocks,
                groups=groups,
                eps=eps,
                downsample=index < downsamplings,
                device=device,
                dtype=dtype,
            )
            for index in range(len(multipliers))
        )
        self.mid = Middle(widths[-1], groups=groups, eps=eps, device=device, dtype=dtype)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps, device=device, dtype=dtype)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1, device=device, dtype=dtype)

    def forward(self, patches: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch z_channel rows columns"]:
        """Map Haar patches to the features before the last 1 x 1 convolution."""
        features = self.conv_in(patches)
        for level in self.down:
            features = level(features)
        return self.conv_out(swish(self.norm_out(self.mid(features))))
