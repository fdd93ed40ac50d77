"""InternVLA-A1, assembled from the blocks: model, configuration, inputs, policy."""

from moteur.recipes.backbones import VisionMLP
from moteur.recipes.batches import Collator, TrainingBatch
from moteur.recipes.checkpoints import released_dtype, use_released_precision
from moteur.recipes.config import ExpertSize, InternVLAA1Config, InternVLVision, Qwen3VLVision, TokenIds
from moteur.recipes.inputs import Inputs, Targets, as_unit_floats, check_frames, check_inputs, expect_shape, moved, only
from moteur.recipes.internvla_a1 import Imagined, InternVLAA1, Losses
from moteur.recipes.presets import preset
from moteur.recipes.processing import Processor

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
    "TokenIds",
    "TrainingBatch",
    "VisionMLP",
    "as_unit_floats",
    "check_frames",
    "check_inputs",
    "expect_shape",
    "moved",
    "only",
    "preset",
    "released_dtype",
    "use_released_precision",
]
