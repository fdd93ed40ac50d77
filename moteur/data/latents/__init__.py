"""The frozen tokenizer's latents of a set's frames: written once, read instead of encoded.

Needs the `data` extra, as `moteur.data.lerobot` does.
"""

from moteur.data.latents.cache import LatentCache
from moteur.data.latents.collate import LatentCollator
from moteur.data.latents.keys import tokenizer_digest
from moteur.data.latents.samples import LatentDataset, latent_inputs, latent_targets
from moteur.data.latents.shards import Shard
from moteur.data.latents.write import tokenizer_alone, write_latents

__all__ = [
    "LatentCache",
    "LatentCollator",
    "LatentDataset",
    "Shard",
    "latent_inputs",
    "latent_targets",
    "tokenizer_alone",
    "tokenizer_digest",
    "write_latents",
]
