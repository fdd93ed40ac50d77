"""The image tokenizer of a model without the model."""

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight


def tokenizer_alone(config: InternVLAA1Config) -> Foresight:
    """Build the image tokenizer of a model without the model; its weights are to be loaded.

    Raises:
        ValueError: The model has no generation expert and therefore no tokenizer.
    """
    if config.gen is None:
        raise ValueError("config.gen: expected sizes of a generation expert, got None")
    return Foresight(config, config.gen, decoder=False)
