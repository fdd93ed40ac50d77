"""Weights of InternVLA-A1 from files and into files."""

from moteur.recipes.checkpoints.config_json import config_from_json, config_to_json
from moteur.recipes.checkpoints.export import export_released
from moteur.recipes.checkpoints.released_config import ReleasedConfig, read_released_config
from moteur.recipes.checkpoints.report import LoadingReport, Misfit

__all__ = [
    "LoadingReport",
    "Misfit",
    "ReleasedConfig",
    "config_from_json",
    "config_to_json",
    "export_released",
    "read_released_config",
]
