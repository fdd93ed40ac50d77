"""Which layout a checkpoint folder has: its tensors, key map, configuration and statistics, from headers alone."""

from collections.abc import Collection
from pathlib import Path

from moteur.recipes.checkpoints.config_files import (
    OWN_TYPES,
    config_from_json,
    read_config,
    read_released_config,
)
from moteur.recipes.checkpoints.folder import CONFIG
from moteur.recipes.checkpoints.keymap import Config, KeyMap, own_keys, released_keys, released_variant, suggestion
from moteur.recipes.checkpoints.pi0_statistics import pi0_statistics
from moteur.recipes.checkpoints.precision import Dtype
from moteur.recipes.checkpoints.tensors import Stored, find_tensors
from moteur.recipes.checkpoints.transforms import Statistics, read_statistics
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.pi0_config import Pi0Config

_EMBEDDING = "backbone.text_embedding.weight"


def open_checkpoint(
    folder: Path, config: Config | None, dtype: Dtype, *, decoder: bool | None
) -> tuple[dict[str, Stored], KeyMap, tuple[str, ...]]:
    """Stored tensors of a checkpoint folder, its key map with the configuration, and notes about `config.json`.

    Raises:
        ValueError: A file is missing or damaged, it is the checkpoint of another model, or a field contradicts another
            one or the tensors.
    """
    values, files = read_config(folder / CONFIG), find_tensors(folder)
    if values.get("type") in list(OWN_TYPES):
        stored = config_from_json(values)
        if config is not None and type(config) is not type(stored):
            raise ValueError(f"config: expected that of {named_models(type(stored))}, got {named_models(type(config))}")
        _check_decoder(stored, decoder)
        held = any(name.startswith("foresight.decoder.") for name in files) if decoder is None else decoder
        _check_layers(config or stored, files, folder)
        changed = config is not None and config != stored
        notes = ("the configuration is the one asked for, not the one that was saved",) if changed else ()
        return files, own_keys(config or stored, files, decoder=held), notes
    variant = released_variant(files)
    if variant is None:
        raise ValueError(
            f"{folder}: neither our own layout nor a released one: config.json has type "
            f"{values.get('type')!r}, model_type {values.get('model_type')!r}, and of the tensors "
            f"{suggestion(files)}; they start {sorted(files)[:4]}"
        )
    if config is not None and config.variant != variant:
        raise ValueError(f"config: expected the {variant} variant, whose tensors {folder} holds, got {config.variant}")
    config, notes = read_released_config(values, variant, config=config)
    _check_decoder(config, decoder)
    keys = released_keys(config, files, decoder=bool(decoder))
    embedding = files.get(keys.key(_EMBEDDING))
    stated = values.get("dtype", values.get("precision", "bfloat16" if variant in {"3B", "2B"} else None))
    if stated is not None and dtype is None and embedding is not None and str(embedding.dtype) != f"torch.{stated}":
        notes += (f"config.json says {stated}, the file holds {embedding.dtype} and is kept so; choose with dtype=",)
    return files, keys, notes


def robots_of(folder: Path, keys: KeyMap) -> tuple[Statistics, tuple[str, ...]]:
    """Statistics of a checkpoint folder with this key map, and notes about those that could not be taken over.

    Raises:
        ValueError: A file is damaged.
    """
    if isinstance(keys.config, Pi0Config) and not keys.own:
        return pi0_statistics(folder, keys.config)
    return read_statistics(folder), ()


def named_models(*configs: type[Config]) -> str:
    """What checkpoints with these configurations are called."""
    names = {InternVLAA1Config: "an InternVLA-A1", Pi0Config: "a π0 or π0.5"}
    return " or ".join(names[config] for config in configs)


def _check_decoder(config: Config, decoder: bool | None) -> None:  # noqa: FBT001
    if decoder and isinstance(config, Pi0Config):
        raise ValueError("decoder: expected None or False for a model without foresight, got True")


def _check_layers(config: Config, files: Collection[str], folder: Path) -> None:
    """Refuse more layers than the file has tensors, before hours go into making them."""
    layers = config.depth + config.vision.depth
    if isinstance(config, InternVLAA1Config):
        layers += len(config.cosmos.multipliers) * config.cosmos.residual_blocks
    if layers > len(files):
        raise ValueError(
            f"{folder / CONFIG}: expected sizes of the {len(files)} tensors beside it, got {layers} layers"
        )
