"""What a checkpoint folder holds, from its headers alone."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moteur.recipes.checkpoints.detect import open_checkpoint, robots_of
from moteur.recipes.checkpoints.folder import TOKENIZER_FILES, reading
from moteur.recipes.checkpoints.keymap import Config
from moteur.recipes.checkpoints.save import TITLES, TOKENIZERS
from moteur.recipes.checkpoints.transforms import Statistics
from moteur.recipes.config import InternVLAA1Config


@dataclass(frozen=True)
class CheckpointSummary:
    """Contents of a checkpoint folder.

    Attributes:
        model: What the model is called.
        config: Every size and constant.
        released: Whether the layout is that of the released checkpoints, not our own.
        parameters: Number format, such as "bfloat16", to numbers stored in it.
        size: Bytes of all tensors.
        encoder: Whether the Cosmos encoder is among them.
        decoder: Whether the Cosmos decoder is among them.
        tokenizer: Whether a text tokenizer is beside them.
        usual_tokenizer: Text tokenizer of the released weights of this variant.
        statistics: Robot name to statistics, for `load_transforms`.
        notes: Remarks about fields of a released `config.json`.
    """

    model: str
    config: Config
    released: bool
    parameters: Mapping[str, int]
    size: int
    encoder: bool
    decoder: bool
    tokenizer: bool
    usual_tokenizer: str
    statistics: Statistics
    notes: tuple[str, ...]


def inspect_checkpoint(folder: str | Path) -> CheckpointSummary:
    """Read what a checkpoint folder holds, without its tensors.

    Args:
        folder: In our own layout, or that of the released checkpoints.

    Raises:
        ValueError: A file is missing or damaged, or it is the checkpoint of another model.
    """
    with reading(Path(folder)) as path:
        files, keys, notes = open_checkpoint(path, None, None, decoder=None)
        statistics, remarks = robots_of(path, keys)
        parameters: Counter[str] = Counter()
        for stored in files.values():
            parameters[str(stored.dtype).removeprefix("torch.")] += math.prod(stored.shape)
        halves = {"encoder": "quant_conv", "decoder": "post_quant_conv"}  # a layer of each
        foresees = isinstance(keys.config, InternVLAA1Config)
        held = {
            half: foresees and keys.key(f"foresight.{half}.{layer}.weight") in files for half, layer in halves.items()
        }
        return CheckpointSummary(
            model=TITLES[keys.config.variant],
            config=keys.config,
            released=not keys.own,
            parameters=dict(parameters.most_common()),
            size=sum(stored.size for stored in files.values()),
            encoder=held["encoder"],
            decoder=held["decoder"],
            tokenizer=any((path / name).is_file() for name in TOKENIZER_FILES),
            usual_tokenizer=TOKENIZERS[keys.config.variant],
            statistics=statistics,
            notes=(*notes, *remarks),
        )
