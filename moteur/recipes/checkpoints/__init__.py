"""Load, save, share and export the weights of a model."""

from moteur.recipes.checkpoints.export import export_released
from moteur.recipes.checkpoints.load import load_backbone, load_foresight, load_pretrained
from moteur.recipes.checkpoints.precision import read_dtype, released_dtype, use_released_precision
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.save import load_tokenizer, push_to_hub, save_pretrained
from moteur.recipes.checkpoints.summary import CheckpointSummary, inspect_checkpoint
from moteur.recipes.checkpoints.transforms import dump_transforms, load_transforms

__all__ = [
    "CheckpointSummary",
    "LoadingReport",
    "dump_transforms",
    "export_released",
    "inspect_checkpoint",
    "load_backbone",
    "load_foresight",
    "load_pretrained",
    "load_tokenizer",
    "load_transforms",
    "push_to_hub",
    "read_dtype",
    "released_dtype",
    "save_pretrained",
    "use_released_precision",
]
