"""The Cosmos CI8x8 image tokenizer as PyTorch modules, and the foresight head that predicts its latents."""

from moteur.tokenizers.blocks import CosmosSize
from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder, check_images
from moteur.tokenizers.foresight import ForesightHead, Grid, foresight_loss
from moteur.tokenizers.haar import haar_images, haar_patches
from moteur.tokenizers.weights import convert_weights, load_weights, save_weights

__all__ = [
    "CosmosDecoder",
    "CosmosEncoder",
    "CosmosSize",
    "ForesightHead",
    "Grid",
    "check_images",
    "convert_weights",
    "foresight_loss",
    "haar_images",
    "haar_patches",
    "load_weights",
    "save_weights",
]
