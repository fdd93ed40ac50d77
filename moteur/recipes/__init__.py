"""Models assembled from the blocks: InternVLA-A1, π0 and π0.5; their configurations, inputs and checkpoints."""

from moteur.recipes.acting import ActingModel, check_imagines, check_pictures
from moteur.recipes.batches import Collator, TrainingBatch
from moteur.recipes.checkpoints.export import export_released
from moteur.recipes.checkpoints.load import load_foresight
from moteur.recipes.checkpoints.pi0_statistics import openpi_statistics
from moteur.recipes.checkpoints.precision import read_dtype, use_released_precision
from moteur.recipes.checkpoints.save import load_tokenizer
from moteur.recipes.checkpoints.summary import inspect_checkpoint
from moteur.recipes.checkpoints.transforms import dump_transforms, load_transforms
from moteur.recipes.config import InternVLAA1Config, InternVLVision, Qwen3VLVision, check_robot
from moteur.recipes.inputs import Inputs, Sizes, Targets
from moteur.recipes.internvla_a1 import Imagined, InternVLAA1, Losses
from moteur.recipes.models import load_model
from moteur.recipes.pi0 import Pi0
from moteur.recipes.pi0_config import Pi0Config, SigLIPVision
from moteur.recipes.presets import preset
from moteur.recipes.processing import Processor
from moteur.recipes.prompts import prompt_pieces, state_bins, tokenize_prompts

__all__ = [
    "ActingModel",
    "Collator",
    "Imagined",
    "Inputs",
    "InternVLAA1",
    "InternVLAA1Config",
    "InternVLVision",
    "Losses",
    "Pi0",
    "Pi0Config",
    "Processor",
    "Qwen3VLVision",
    "SigLIPVision",
    "Sizes",
    "Targets",
    "TrainingBatch",
    "check_imagines",
    "check_pictures",
    "check_robot",
    "dump_transforms",
    "export_released",
    "inspect_checkpoint",
    "load_foresight",
    "load_model",
    "load_tokenizer",
    "load_transforms",
    "openpi_statistics",
    "preset",
    "prompt_pieces",
    "read_dtype",
    "state_bins",
    "tokenize_prompts",
    "use_released_precision",
]
