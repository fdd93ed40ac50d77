"""The Cosmos CI8x8 image tokenizer as plain modules, and the head that predicts its latents."""

from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder
from moteur.tokenizers.foresight import ForesightHead, Grid
from moteur.tokenizers.haar import haar_images, haar_patches
from moteur.tokenizers.images import check_images
from moteur.tokenizers.loss import foresight_loss
from moteur.tokenizers.weights import load_weights, save_weights

__all__ = [
    "CosmosDecoder",
    "CosmosEncoder",
    "ForesightHead",
    "Grid",
    "check_images",
    "foresight_loss",
    "haar_images",
    "haar_patches",
    "load_weights",
    "save_weights",
]
