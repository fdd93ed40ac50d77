"""Cosmos encoder: images to continuous latents."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.tokenizers.blocks import CosmosSize, Factory, Level, Middle, group_norm, reset_layers, swish
from moteur.tokenizers.haar import haar_patches

_SLACK = 1e-3  # rounding and interpolation may leave [-1, 1] by an eighth of one step of an 8-bit image


class CosmosEncoder(nn.Module):
    """Encoder of the Cosmos continuous image tokenizer.

    Maps images in [-1, 1] to latents, `size.compression` times smaller in height and width: Haar patches, a 3 x 3
    convolution, one level of residual blocks per multiplier, attention, group norm, SiLU, a 3 x 3 convolution to
    `z_channels` and a 1 x 1 convolution to `latent_channels`. The latent is the output itself: there is no distribution
    to sample from and no scale factor.

    The keys of `state_dict` are those of the released `encoder.jit`. Nothing is downloaded: weights start as PyTorch
    initialises its convolutions and group norms; `load_weights` fills them.

    Args:
        size: Sizes, for example `CosmosSize.ci8x8()`.
        frozen: Create all parameters with `requires_grad=False`. Pass False to train them.
        device: Device of the parameters; `"meta"` allocates nothing.
        dtype: Dtype of the parameters. What goes in must have the same dtype.

    Source:
        https://arxiv.org/abs/2501.03575, section 4; https://huggingface.co/nvidia/Cosmos-Tokenizer-CI8x8.

    Examples:
        >>> from dataclasses import replace
        >>> encoder = CosmosEncoder(replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1)))
        >>> encoder(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 16, 8, 4])
    """

    def __init__(
        self,
        size: CosmosSize,
        *,
        frozen: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.encoder = _Trunk(size, {"device": device, "dtype": dtype})
        self.quant_conv = nn.Conv2d(size.z_channels, size.latent_channels, 1, device=device, dtype=dtype)
        self.requires_grad_(not frozen)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch latent_channel rows columns"]:
        """Encode images, after checking their range where that is free.

        The range is checked on the CPU, outside `torch.compile` and `torch.export`. On another device nothing is read
        back, and images out of range give meaningless latents: call `check_range` once where images arrive.

        Args:
            images: Images in [-1, 1]; height and width are multiples of `size.compression`.

        Returns:
            Latents; rows and columns are height and width divided by `size.compression`.

        Raises:
            ValueError: The images are not floating point, height or width is not a multiple of `size.compression`, or
                (see above) a value is not in [-1, 1].
        """
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_range(images)
        return self.latents(images)

    def latents(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch latent_channel rows columns"]:
        """Encode images without reading their values, for compiled, traced or captured graphs.

        The same as calling the module, without the check of the range.

        Raises:
            ValueError: The images are not floating point, or height or width is not a multiple of `size.compression`.
        """
        _expect_floats(images)
        height, width = images.shape[-2:]
        unit = self.size.compression
        if height % unit or width % unit:
            raise ValueError(f"images: expected height and width that are multiples of {unit}, got {height} x {width}")
        return self.quant_conv(self.encoder(haar_patches(images, patch=self.size.patch)))

    @staticmethod
    def check_range(images: Float[Tensor, "*batch channel height width"]) -> None:
        """Raise unless every value is a number in [-1, 1], up to 1e-3.

        Reads the smallest and the largest value, for which the host waits for the device: call it once where images
        arrive, not in a loop. Images left in [0, 1] pass; they are legal, only dark.

        Raises:
            ValueError: The images are not floating point, or a value is outside the range or NaN.

        Examples:
            >>> CosmosEncoder.check_range(torch.full((1, 3, 8, 8), 255.0))
            Traceback (most recent call last):
            ValueError: images: expected values in [-1, 1] (2 * frames - 1 for frames in [0, 1]), got [255, 255]
        """
        _expect_floats(images)
        expect_range(images, least=-1, hint=" (2 * frames - 1 for frames in [0, 1])")

    def reset_parameters(self) -> None:
        """Draw all weights anew, for example after `to_empty`: as PyTorch initialises its layers."""
        reset_layers(self)


def expect_range(images: Float[Tensor, "*shape"], *, least: int, hint: str = "") -> None:
    """Refuse values outside [`least`, 1], up to rounding, and NaN. The host waits for the device."""
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    slack = _SLACK * (1 - least) / 2
    if not (low >= least - slack and high <= 1 + slack):
        raise ValueError(f"images: expected values in [{least}, 1]{hint}, got [{low:g}, {high:g}]")


def _expect_floats(images: Tensor) -> None:
    """Refuse other numbers: the Haar patches of bytes would be floats."""
    if not images.is_floating_point():
        raise ValueError(f"images: expected floating point in [-1, 1], got {images.dtype}")


class _Trunk(nn.Module):
    """Layers between the Haar patches and the last 1 x 1 convolution, under the names of released checkpoints."""

    def __init__(self, size: CosmosSize, factory: Factory) -> None:
        super().__init__()
        widths = (size.channels, *size.widths)
        self.conv_in = nn.Conv2d(size.patch_channels, size.channels, 3, padding=1, **factory)
        self.down = nn.ModuleList(
            Level(before, after, size, factory, blocks=size.residual_blocks, downsample=index < size.downsamplings)
            for index, (before, after) in enumerate(pairwise(widths))
        )
        self.mid = Middle(widths[-1], size, factory)
        self.norm_out = group_norm(widths[-1], size, factory)
        self.conv_out = nn.Conv2d(widths[-1], size.z_channels, 3, padding=1, **factory)

    def forward(self, patches: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch z_channel rows columns"]:
        """Map Haar patches to the features before the last 1 x 1 convolution."""
        features = self.conv_in(patches)
        for level in self.down:
            features = level(features)
        return self.conv_out(swish(self.norm_out(self.mid(features))))
