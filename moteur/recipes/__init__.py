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
from moteur.recipes.config import InternVLAA1Config, InternVLVision, Qwen3VLVision
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.internvla_a1 import Imagined, InternVLAA1, Losses
from moteur.recipes.presets import preset
from moteur.recipes.processing import Processor

__all__ = [
    "Collator",
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
    "TrainingBatch",
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
