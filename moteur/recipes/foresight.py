"""Foresight in pixels: the Cosmos tokenizer around the latent head, and the images it may be asked for."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moteur.recipes.config import ExpertSize, InternVLAA1Config
from moteur.tokenizers import CosmosDecoder, CosmosEncoder, ForesightHead


class Foresight(nn.Module):
    """What the generation expert reads and writes: `encoder` (frozen), `head`, and `decoder` if images are wanted.

    Args:
        config: The model's sizes.
        size: Those of the generation expert.
        decoder: Hold the Cosmos decoder as well; nothing but `decode` uses it.
    """

    def __init__(self, config: InternVLAA1Config, size: ExpertSize, *, decoder: bool) -> None:
        super().__init__()
        self.encoder = CosmosEncoder(config.cosmos)
        self.head = ForesightHead(
            dim=size.dim,
            latent_channels=config.cosmos.latent_channels,
            cell=config.foresight_cell,
            eps=config.foresight_eps,
        )
        self.decoder = CosmosDecoder(config.cosmos) if decoder else None
        self.size = config.foresight_size

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "*lead 3 height width"]) -> Float[Tensor, "*lead channel rows columns"]:
        """Latents of frames in [0, 1], resized to the tokenizer's square; no gradient flows into them."""
        flat = frames.reshape(-1, *frames.shape[-3:])
        flat = F.interpolate(flat, (self.size, self.size), mode="bilinear", align_corners=False)
        latents = self.encoder.latents((flat * 2 - 1).to(self.encoder.quant_conv.weight.dtype))
        return latents.unflatten(0, frames.shape[:-3])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*lead channel rows columns"]) -> Float[Tensor, "*lead 3 height width"]:
        """Pictures in [0, 1] of latents, for a model that holds the decoder (`InternVLAA1.check_imagines`)."""
        assert self.decoder is not None
        flat = latents.reshape(-1, *latents.shape[-3:]).to(self.decoder.post_quant_conv.weight.dtype)
        return ((self.decoder(flat) + 1) / 2).clamp(0, 1).unflatten(0, latents.shape[:-3])
