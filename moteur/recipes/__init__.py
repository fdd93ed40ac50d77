"""InternVLA-A1, assembled from the blocks."""

from moteur.recipes.checkpoints import use_released_precision
from moteur.recipes.config import (
    CosmosSize,
    ExpertSize,
    InternVLAA1Config,
    InternVLVision,
    Qwen3VLVision,
    TimeSampling,
    TokenIds,
)
from moteur.recipes.inputs import Inputs, Targets, moved
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.outputs import Imagined, Joint, Losses
from moteur.recipes.presets import preset
from moteur.recipes.processing import Observation, Processor

__all__ = [
    "CosmosSize",
    "ExpertSize",
    "Imagined",
    "Inputs",
    "InternVLAA1",
    "InternVLAA1Config",
    "InternVLVision",
    "Joint",
    "Losses",
    "Observation",
    "Processor",
    "Qwen3VLVision",
    "Targets",
    "TimeSampling",
    "TokenIds",
    "moved",
    "preset",
    "use_released_precision",
]
