"""Cosmos image tokenizer: pictures to latents and back, encoder and decoder in one module."""

import os
from typing import Unpack

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from moteur.hub import HubOptions
from moteur.tokenizers.blocks import CosmosSize
from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder, expect_range
from moteur.tokenizers.weights import load_weights


class Cosmos(nn.Module):
    """Cosmos continuous image tokenizer: an encoder and a decoder, for pictures in [0, 1] with any leading axes.

    `encode` gives the latents of pictures, `decode` the pictures of latents, and calling the module both in turn.
    Latents are those of the released model as they are: it has no distribution, scale factor, mean or deviation to
    normalise them with. The halves themselves take and give batches in [-1, 1].

    Args:
        size: Sizes, for example `CosmosSize.ci8x8()`.
        decoder: Build the decoder, which only `decode` uses: more than half of the parameters.
        frozen: Create all parameters with `requires_grad=False`. Pass False to train them.
        device: Device of the parameters; `"meta"` allocates nothing.
        dtype: Dtype of the parameters. Pictures and latents are converted to it.

    Attributes:
        encoder: The `CosmosEncoder`.
        decoder: The `CosmosDecoder`, or None.

    Source:
        As for `CosmosEncoder`.

    Examples:
        >>> from dataclasses import replace
        >>> cosmos = Cosmos(replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1)))
        >>> frames = torch.randint(256, (2, 3, 5, 3, 64, 32), dtype=torch.uint8)  # batch, view, time
        >>> latents = cosmos.encode(frames)
        >>> latents.shape, cosmos.decode(latents).shape
        (torch.Size([2, 3, 5, 16, 8, 4]), torch.Size([2, 3, 5, 3, 64, 32]))
    """

    def __init__(
        self,
        size: CosmosSize,
        *,
        decoder: bool = True,
        frozen: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.encoder = CosmosEncoder(size, frozen=frozen, device=device, dtype=dtype)
        self.decoder = CosmosDecoder(size, frozen=frozen, device=device, dtype=dtype) if decoder else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        size: CosmosSize | None = None,
        decoder: bool = True,
        frozen: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        **hub: Unpack[HubOptions],
    ) -> "Cosmos":
        """Load a tokenizer from a folder, a Hub repository, or a file of both halves.

        Args:
            source: As for `load_weights`, for example `"nvidia/Cosmos-Tokenizer-CI8x8"`, or what `save_weights` wrote.
            size: Sizes of the stored model. None: those of the released CI8x8.
            decoder: Load the decoder too.
            frozen: As for the class.
            device: As for the class.
            dtype: Dtype that the weights are converted to. None: PyTorch's default, whatever the file has.
            revision: Branch, tag or commit on the Hub.
            **hub: `cache_dir`, `token`, `force_download` and `local_files_only` of the Hub's client.

        Raises:
            ValueError: As for `load_weights`: no such source, a damaged file, or weights of other sizes.
            FileNotFoundError: As for `load_weights`: the Hub has none, or cannot be reached.
        """
        model = cls(size or CosmosSize.ci8x8(), decoder=decoder, frozen=frozen, device="meta", dtype=dtype)
        model.to_empty(device=torch.get_default_device() if device is None else device)
        for half in (model.encoder, model.decoder):
            if half is not None:
                load_weights(half, source, revision=revision, **hub)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters, and of latents and pictures that come out."""
        return self.encoder.quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters, where pictures and latents have to be."""
        return self.encoder.quant_conv.weight.device

    def reset_parameters(self) -> None:
        """Draw all weights anew, for example after `to_empty`: as PyTorch initialises its layers."""
        self.encoder.reset_parameters()
        if self.decoder is not None:
            self.decoder.reset_parameters()

    def forward(
        self, images: UInt8[Tensor, "*lead 3 height width"] | Float[Tensor, "*lead 3 height width"]
    ) -> Float[Tensor, "*lead 3 height width"]:
        """Encode and decode: the pictures as far as latents can hold them."""
        return self.decode(self.encode(images))

    def encode(
        self, images: UInt8[Tensor, "*lead 3 height width"] | Float[Tensor, "*lead 3 height width"]
    ) -> Float[Tensor, "*lead channel rows columns"]:
        """Latents of pictures.

        Args:
            images: uint8, or floating point in [0, 1]. Height and width are multiples of `size.compression`. The range
                is checked where that is free: on the CPU, outside `torch.compile`.

        Returns:
            Latents; rows and columns are height and width divided by `size.compression`.

        Raises:
            ValueError: The pictures have another dtype, shape or range.
        """
        if images.ndim < 3 or images.shape[-3] != 3:  # noqa: PLR2004  # colours
            raise ValueError(f"images: expected shape (..., 3, height, width), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            pixels = images.float() / 255
        else:
            if not images.is_floating_point():
                raise ValueError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
            if images.device.type == "cpu" and not torch.compiler.is_compiling():
                expect_range(images, least=0)
            pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        flat = (pixels * 2 - 1).to(self.dtype).reshape(-1, *images.shape[-3:])
        latents = self.encoder.latents(flat)
        return latents.reshape(*images.shape[:-3], *latents.shape[1:])

    def decode(self, latents: Float[Tensor, "*lead channel rows columns"]) -> Float[Tensor, "*lead 3 height width"]:
        """Pictures in [0, 1] of latents of any height and width.

        They are clamped, which stops gradients outside the range: train on the output of `decoder`, which is in [-1, 1]
        and not clamped.

        Raises:
            ValueError: The tokenizer was built without a decoder, or the latents have another dtype or shape.
        """
        if self.decoder is None:
            raise ValueError("decode: expected a tokenizer built with decoder=True, got one without a decoder")
        channels = self.size.latent_channels
        if latents.ndim < 3 or latents.shape[-3] != channels or not latents.is_floating_point():  # noqa: PLR2004  # channel, rows, columns
            raise ValueError(
                f"latents: expected floating point of shape (..., {channels}, rows, columns), "
                f"got {latents.dtype} of shape {tuple(latents.shape)}"
            )
        decoded = self.decoder(latents.to(self.dtype).reshape(-1, *latents.shape[-3:]))
        return ((decoded + 1) / 2).clamp(0, 1).reshape(*latents.shape[:-3], *decoded.shape[1:])
