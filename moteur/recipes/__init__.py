"""InternVLA-A1, assembled from the blocks: model, configuration, inputs, policy."""

from moteur.recipes.backbones import VisionMLP
from moteur.recipes.batches import Collator, TrainingBatch
from moteur.recipes.checkpoints import (
    dump_transforms,
    load_tokenizer,
    load_transforms,
    released_dtype,
    use_released_precision,
)
from moteur.recipes.config import ExpertSize, InternVLAA1Config, InternVLVision, Qwen3VLVision, TokenIds
from moteur.recipes.inputs import Inputs, Targets, as_unit_floats, check_frames, check_inputs, expect_shape, moved, only
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
    "Losses",
    "Processor",
    "Qwen3VLVision",
    "Targets",
    "TextTokenizer",
    "TokenIds",
    "TrainingBatch",
    "VisionMLP",
    "as_unit_floats",
    "check_frames",
    "check_inputs",
    "dump_transforms",
    "expect_shape",
    "load_tokenizer",
    "load_transforms",
    "moved",
    "only",
    "preset",
    "released_dtype",
    "use_released_precision",
]
