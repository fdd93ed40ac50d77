"""Weights of InternVLA-A1 from files and into files."""

from moteur.recipes.weights.config_json import config_from_json, config_to_json
from moteur.recipes.weights.export import export_released
from moteur.recipes.weights.released_config import ReleasedConfig, read_released_config
from moteur.recipes.weights.report import LoadingReport, Misfit

__all__ = [
    "LoadingReport",
    "Misfit",
    "ReleasedConfig",
    "config_from_json",
    "config_to_json",
    "export_released",
    "read_released_config",
]
