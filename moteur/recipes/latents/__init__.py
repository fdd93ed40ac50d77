"""The frozen tokenizer's latents of a set's frames: written once, read instead of encoded.

Needs the `data` extra, as `moteur.recipes.lerobot` does.
"""

from moteur.recipes.lerobot import extra as extra  # first of all: it says what to install

# isort: split
from moteur.recipes.latents.cache import LatentCache
from moteur.recipes.latents.collate import LatentCollator
from moteur.recipes.latents.keys import tokenizer_digest
from moteur.recipes.latents.samples import LatentDataset, latent_inputs, latent_targets
from moteur.recipes.latents.shards import Shard
from moteur.recipes.latents.write import tokenizer_alone, write_latents

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
