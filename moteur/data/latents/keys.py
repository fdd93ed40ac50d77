"""What cached latents depend on, as digests: nothing that changes them may leave a key as it was."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moteur.data import RobotTransform
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight

_BYTES = 20
_LAYOUT = 2  # of the shards: raise it when their content changes its meaning


def file_digest(path: Path) -> str:
    """Digest of a file's bytes.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).hexdigest()


def tokenizer_digest(foresight: Foresight, config: InternVLAA1Config) -> str:
    """Digest of the frozen tokenizer: every weight with its name, dtype and shape, and what the weights do not tell.

    Args:
        foresight: Holds the encoder; its head and decoder play no part.
        config: What it was built from: epsilons, groups, patch and the size of the frames it sees.
    """
    digest = hashlib.blake2b(_text({"cosmos": asdict(config.cosmos), "size": foresight.size}), digest_size=_BYTES)
    for name, value in sorted(foresight.encoder.state_dict().items()):
        digest.update(_text([name, str(value.dtype), list(value.shape)]))
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings(
    foresight: Foresight, config: InternVLAA1Config, preparation: RobotTransform, dtype: torch.dtype
) -> dict[str, Any]:
    """Everything but the frames that latents depend on, as plain values.

    Raises:
        ValueError: The preparation's frames are not of the size that the model sees.
    """
    if preparation.size != config.frame_size:
        raise ValueError(f"preparation.size: expected the model's {config.frame_size}, got {preparation.size}")
    return {
        "layout": _LAYOUT,
        "tokenizer": tokenizer_digest(foresight, config),
        "frames": {"size": preparation.size, "images": preparation.images},
        "dtype": str(dtype),
    }


def key(ingredients: Any) -> str:  # noqa: ANN401 - plain values, as JSON holds them
    """Name of what is made from `ingredients`."""
    return hashlib.blake2b(_text(ingredients), digest_size=_BYTES).hexdigest()


def _text(values: Any) -> bytes:  # noqa: ANN401 - plain values, as JSON holds them
    return json.dumps(values, sort_keys=True).encode()
