"""The model of a checkpoint, whichever recipe it belongs to."""

from pathlib import Path
from typing import Unpack

from moteur.recipes.checkpoints.load import LoadOptions, load_pretrained
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.pi0 import Pi0
from moteur.recipes.pi0_config import Pi0Config


def load_model(source: str | Path, **options: Unpack[LoadOptions]) -> InternVLAA1 | Pi0:
    """Load the model of a checkpoint: an `InternVLAA1` or a `Pi0`, as the checkpoint says.

    Args:
        source: A folder, or a Hub id `owner/name`, in our own layout or a released one.
        **options: Those of `InternVLAA1.from_pretrained` and `Pi0.from_pretrained`.
    """
    return load_pretrained(_built, source, configs=(InternVLAA1Config, Pi0Config), **options)


def _built(config: InternVLAA1Config | Pi0Config, *, decoder: bool = False) -> InternVLAA1 | Pi0:
    return Pi0(config) if isinstance(config, Pi0Config) else InternVLAA1(config, decoder=decoder)
