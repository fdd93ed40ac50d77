"""The Cosmos CI8x8 image tokenizer as PyTorch modules, and the foresight head that predicts its latents."""

from moteur.tokenizers.blocks import CosmosSize
from moteur.tokenizers.decoder import CosmosDecoder
from moteur.tokenizers.encoder import CosmosEncoder
from moteur.tokenizers.foresight import ForesightHead, Grid, foresight_loss
from moteur.tokenizers.image_tokenizer import Cosmos
from moteur.tokenizers.weights import convert_weights, load_weights, save_weights

__all__ = [
    "Cosmos",
    "CosmosDecoder",
    "CosmosEncoder",
    "CosmosSize",
    "ForesightHead",
    "Grid",
    "convert_weights",
    "foresight_loss",
    "load_weights",
    "save_weights",
]
