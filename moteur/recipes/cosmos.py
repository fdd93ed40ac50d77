"""Foresight: the frozen Cosmos image tokenizer, the latent head, and the decoder for predicted images."""

import hashlib
import json
from dataclasses import asdict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from moteur.data import as_unit_floats
from moteur.recipes.config import ExpertSize, InternVLAA1Config
from moteur.recipes.inputs import only
from moteur.tokenizers import CosmosDecoder, CosmosEncoder, ForesightHead

_DIGEST_BYTES = 20


class Foresight(nn.Module):
    """Input and output of the generation expert: `encoder` (frozen), `head`, and an optional `decoder`.

    Args:
        config: Sizes of the model.
        size: Sizes of the generation expert.
        decoder: Build the Cosmos decoder, which only `decode` uses.
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
        self.cosmos = config.cosmos

    @torch.no_grad()
    def digest(self) -> str:
        """Digest of the frozen tokenizer, for the names of cached latents.

        Covers every weight of the encoder with its name, dtype and shape, the side that frames are resized to, and what
        the weights do not tell, such as epsilons. Equal on every device.
        """
        digest = hashlib.blake2b(_json({"cosmos": asdict(self.cosmos), "size": self.size}), digest_size=_DIGEST_BYTES)
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(_json([name, str(value.dtype), list(value.shape)]))
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "*lead 3 height width"]) -> Float[Tensor, "*lead channel rows columns"]:
        """Latents of frames in [0, 1], resized to the tokenizer's square; no gradient flows into them.

        Frames on another device are moved to that of the weights.
        """
        weight = self.encoder.quant_conv.weight
        flat = frames.reshape(-1, *frames.shape[-3:]).to(weight.device)
        flat = F.interpolate(flat, (self.size, self.size), mode="bilinear", align_corners=False)
        latents = self.encoder.latents((flat * 2 - 1).to(weight.dtype))
        return latents.unflatten(0, frames.shape[:-3])

    def encode_views(
        self,
        frames: UInt8[Tensor, "batch view *time 3 height width"] | Float[Tensor, "batch view *time 3 height width"],
        view_valid: Bool[Tensor, "batch view"] | None,
    ) -> Float[Tensor, "batch view *time channel rows columns"]:
        """Latents of pictures, uint8 or floats in [0, 1]; zeros for missing cameras."""
        return only(self.encode(as_unit_floats(frames)), view_valid)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "*lead channel rows columns"]) -> Float[Tensor, "*lead 3 height width"]:
        """Pictures in [0, 1] of latents, for a model that holds the decoder."""
        assert self.decoder is not None
        flat = latents.reshape(-1, *latents.shape[-3:]).to(self.decoder.post_quant_conv.weight.dtype)
        return ((self.decoder(flat) + 1) / 2).clamp(0, 1).unflatten(0, latents.shape[:-3])


def tokenizer_alone(config: InternVLAA1Config) -> Foresight:
    """Build the image tokenizer of a model without the model; its weights are to be loaded.

    Raises:
        ValueError: The model has no generation expert and therefore no tokenizer.
    """
    if config.gen is None:
        raise ValueError("config.gen: expected sizes of a generation expert, got None")
    return Foresight(config, config.gen, decoder=False)


def _json(values: object) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
