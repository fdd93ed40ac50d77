"""Cosmos decoder: continuous latents to images."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.tokenizers.blocks import CosmosSize, Factory, Level, Middle, group_norm, reset_layers, swish
from moteur.tokenizers.haar import haar_images


class CosmosDecoder(nn.Module):
    """Decoder of the Cosmos continuous image tokenizer.

    Maps latents to images in [-1, 1], `size.compression` times larger in height and width. The mirror of
    `CosmosEncoder`: levels run from the last multiplier to the first, each with one residual block more than in the
    encoder, and the Haar patches are put back together at the end.

    The keys of `state_dict` are those of the released `decoder.jit`; levels are numbered as in the encoder, so the last
    one runs first. Arguments, initial weights and source are those of `CosmosEncoder`. Gradients reach the latents even
    of a frozen decoder.

    Examples:
        >>> from dataclasses import replace
        >>> decoder = CosmosDecoder(replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1)))
        >>> decoder(torch.zeros(2, 16, 8, 4)).shape
        torch.Size([2, 3, 64, 32])
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
        self.post_quant_conv = nn.Conv2d(size.latent_channels, size.z_channels, 1, device=device, dtype=dtype)
        self.decoder = _Trunk(size, {"device": device, "dtype": dtype})
        self.requires_grad_(not frozen)

    def forward(self, latents: Float[Tensor, "batch channel rows columns"]) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents of any height and width.

        Returns:
            Images with values near [-1, 1]. They are **not clamped**, so that gradients survive: clamp them before
                display.
        """
        return haar_images(self.decoder(self.post_quant_conv(latents)), patch=self.size.patch)

    def reset_parameters(self) -> None:
        """Draw all weights anew, for example after `to_empty`: as PyTorch initialises its layers."""
        reset_layers(self)


class _Trunk(nn.Module):
    """Layers between the first 1 x 1 convolution and the Haar patches, under the names of released checkpoints."""

    def __init__(self, size: CosmosSize, factory: Factory) -> None:
        super().__init__()
        widths = (*size.widths, size.widths[-1])
        unscaled = len(size.multipliers) - size.downsamplings
        self.conv_in = nn.Conv2d(size.z_channels, widths[-1], 3, padding=1, **factory)
        self.mid = Middle(widths[-1], size, factory)
        self.up = nn.ModuleList(
            Level(before, after, size, factory, blocks=size.residual_blocks + 1, upsample=index >= unscaled)
            for index, (after, before) in enumerate(pairwise(widths))
        )
        self.norm_out = group_norm(widths[0], size, factory)
        self.conv_out = nn.Conv2d(widths[0], size.patch_channels, 3, padding=1, **factory)

    def forward(self, z: Float[Tensor, "batch z_channel rows columns"]) -> Float[Tensor, "batch _ height width"]:
        """Map the features after the first 1 x 1 convolution to Haar patches."""
        features = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            features = level(features)
        return self.conv_out(swish(self.norm_out(features)))
