"""InternVLA-A1, assembled from the blocks: model, configuration, inputs, policy."""

from moteur.recipes.batches import Collator, TrainingBatch
from moteur.recipes.checkpoints import (
    LoadingReport,
    dump_transforms,
    export_released,
    inspect_checkpoint,
    load_foresight,
    load_tokenizer,
    load_transforms,
    read_dtype,
    use_released_precision,
)
from moteur.recipes.config import ExpertSize, InternVLAA1Config, InternVLVision, Qwen3VLVision, TokenIds
from moteur.recipes.inputs import Inputs, Targets, check_inputs, check_pictures
from moteur.recipes.internvla_a1 import Imagined, InternVLAA1, Losses
from moteur.recipes.presets import preset
from moteur.recipes.processing import Processor, TextTokenizer

__all__ = [
    "Collator",
    "ExpertSize",
    "Imagined",
    "Inputs",
    "InternVLAA1",
    "InternVLAA1Config",
    "InternVLVision",
    "LoadingReport",
    "Losses",
    "Processor",
    "Qwen3VLVision",
    "Targets",
    "TextTokenizer",
    "TokenIds",
    "TrainingBatch",
    "check_inputs",
    "check_pictures",
    "dump_transforms",
    "export_released",
    "inspect_checkpoint",
    "load_foresight",
    "load_tokenizer",
    "load_transforms",
    "preset",
    "read_dtype",
    "use_released_precision",
]
