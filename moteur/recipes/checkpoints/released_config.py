"""The `config.json` of released checkpoints: LeRobot's form, read field by field."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moteur.flowmatch import BetaTime
from moteur.recipes.config import InternVLAA1Config, Variant
from moteur.recipes.presets import preset

TYPES: Mapping[str, Variant] = {"qwena1": "3B"}
"""Values of `type` and their variant. The 2B weights are not published: that variant is known by its tensors."""

_BACKBONES: Mapping[str, Mapping[Variant, str | None]] = {
    "qwen3_vl_variant": {"3B": "qwen3_vl_28l"},
    "action_expert_variant": {"3B": "qwen3_28l", "2B": None},
    "internvl_variant": {"2B": None},
    "qwen2_variant": {"2B": None},
}
_COUNTS = {
    "chunk_size": "chunk",
    "max_state_dim": "state_dim",
    "max_action_dim": "action_dim",
    "num_inference_steps": "steps",
    "scale_factor": "foresight_cell",
    "tokenizer_max_length": "text_length",
}
_NUMBERS = {"min_period": "min_period", "max_period": "max_period", "lambda_gen": "foresight_weight"}
_TIMES = {
    "time_sampling_beta_alpha": "alpha",
    "time_sampling_beta_beta": "beta",
    "time_sampling_scale": "scale",
    "time_sampling_offset": "offset",
}
_FLAGS = ("freeze_vision_encoder", "train_expert_only", "train_vlm_only")
_TRAINING = re.compile(
    r"(optimizer|scheduler)_.*|(n_obs_steps|normalization_mapping|device|use_amp|push_to_hub|repo_id|private|tags|license|"
    r"pretrained_path|gradient_checkpointing|compile_model|compile_mode|use_peft|empty_cameras|"
    r"qwen3_vl_pretrained_path|qwen3_vl_processor_path|cosmos_tokenizer_path_or_name)"
)
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class ReleasedConfig:
    """What a released `config.json` says.

    Attributes:
        config: Sizes and constants of the model.
        n_action_steps: Steps of a chunk to carry out before the next is asked for.
        dtype: What the released code computes in, "bfloat16" or "float32".
        freeze_vision_encoder: The vision tower was not trained.
        train_expert_only: Only the experts `gen` and `act` were trained.
        train_vlm_only: Only `und` was trained.
        training: Fields of the optimiser, the schedule and LeRobot's own machinery, as they stand.
        notes: Fields that were ignored because nobody here knows them, and what they were set to.
    """

    config: InternVLAA1Config
    n_action_steps: int
    dtype: str
    freeze_vision_encoder: bool
    train_expert_only: bool
    train_vlm_only: bool
    training: Mapping[str, Any]
    notes: tuple[str, ...]


def read_released_config(
    values: Mapping[str, Any], variant: Variant, *, config: InternVLAA1Config | None = None
) -> ReleasedConfig:
    """Read a released `config.json`; whatever it does not state is as released.

    Args:
        values: Its fields.
        variant: Whose tensors lie beside it.
        config: Sizes to take instead, for a model that is not of a released size; differences become notes.

    Raises:
        ValueError: A known field has a value it cannot have, or contradicts another one or the tensors.

    >>> values = {"type": "qwena1", "chunk_size": 50, "n_action_steps": 30, "num_inference_steps": 5, "knob": 1}
    >>> read = read_released_config(values, "3B")
    >>> read.config.steps, read.n_action_steps, read.notes
    (5, 30, ('knob = 1 in config.json is unknown here and was ignored',))
    """
    _check_variant(values, variant, sizes_given=config is not None)
    stated = _stated(values)
    notes = _type_note(values, variant)
    notes += [f"{name} = {values[name]!r} in config.json is unknown here and was ignored" for name in _unknown(values)]
    if config is None:
        config = replace(preset(variant), **stated)
    else:
        differing = {name: value for name, value in stated.items() if getattr(config, name) != value}
        notes += [
            f"{name} is {getattr(config, name)!r} as asked for, {value!r} in config.json"
            for name, value in differing.items()
        ]
    n_action_steps = _count("n_action_steps", values.get("n_action_steps", config.chunk))
    if n_action_steps > config.chunk:
        raise ValueError(f"n_action_steps: expected at most chunk_size = {config.chunk}, got {n_action_steps}")
    for group, name, limit, field in (
        ("input_features", "observation.state", config.state_dim, "max_state_dim"),
        ("output_features", "action", config.action_dim, "max_action_dim"),
    ):
        _check_feature(values, group, name, limit, field)
    flags = {name: _flag(name, values.get(name, False)) for name in _FLAGS}
    if flags["train_expert_only"] and flags["train_vlm_only"]:
        raise ValueError("train_expert_only, train_vlm_only: expected at most one of them true, got both")
    return ReleasedConfig(
        config=config,
        n_action_steps=n_action_steps,
        dtype=_dtype(values),
        training={name: value for name, value in values.items() if _TRAINING.fullmatch(name)},
        notes=tuple(notes),
        **flags,
    )


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields that the file states, under our names."""
    stated: dict[str, Any] = {}
    for theirs, ours in _COUNTS.items():
        if theirs in values:
            stated[ours] = _count(theirs, values[theirs])
    for theirs, ours in _NUMBERS.items():
        if theirs in values:
            stated[ours] = _number(theirs, values[theirs])
    if "image_resolution" in values:
        stated["frame_size"] = _square("image_resolution", values["image_resolution"])
    times = {ours: _number(theirs, values[theirs]) for theirs, ours in _TIMES.items() if theirs in values}
    if times:
        stated["time"] = replace(BetaTime.released(), **times)
    return stated


def restated(values: Mapping[str, Any], config: InternVLAA1Config) -> dict[str, Any]:
    """The same fields, with the numbers of `config` in those that state something about the model.

    A number that the fields leave out is added where it is not the variant's own; a chunk shorter than the steps to
    carry out of it shortens those.
    """
    mine, usual = _numbers_of(config), _numbers_of(preset(config.variant))
    named = {name: mine[name] if name in mine and mine[name] != value else value for name, value in values.items()}
    named |= {name: number for name, number in mine.items() if name not in values and number != usual[name]}
    steps = named.get("n_action_steps")
    if isinstance(steps, int) and steps > config.chunk:
        named["n_action_steps"] = config.chunk
    return named


def _numbers_of(config: InternVLAA1Config) -> dict[str, Any]:
    numbers = {theirs: getattr(config, ours) for theirs, ours in {**_COUNTS, **_NUMBERS}.items()}
    numbers |= {theirs: getattr(config.time, ours) for theirs, ours in _TIMES.items()}
    return numbers | {"image_resolution": [config.frame_size, config.frame_size]}


def _check_variant(values: Mapping[str, Any], variant: Variant, *, sizes_given: bool) -> None:
    kind = values.get("type")
    if isinstance(kind, str) and TYPES.get(kind, variant) != variant:
        raise ValueError(f"type: {kind!r} is the {TYPES[kind]} variant, and the tensors are those of {variant}")
    for name, owners in _BACKBONES.items():
        if name not in values:
            continue
        if variant not in owners:
            raise ValueError(
                f"{name}: {values[name]!r} belongs to {next(iter(owners))}, and the tensors are those of {variant}"
            )
        known = owners[variant]
        if known is not None and values[name] != known and not sizes_given:
            raise ValueError(f"{name}: expected {known!r}, got {values[name]!r}; other sizes need config=")


def _type_note(values: Mapping[str, Any], variant: Variant) -> list[str]:
    kind = values.get("type")
    if isinstance(kind, str) and kind in TYPES:
        return []
    return [f"type {kind!r} in config.json is unknown here, the tensors are those of the {variant} variant"]


def _unknown(values: Mapping[str, Any]) -> list[str]:
    known = {"type", "dtype", "n_action_steps", "image_resolution", "input_features", "output_features", *_BACKBONES}
    known |= {*_COUNTS, *_NUMBERS, *_TIMES, *_FLAGS}
    return [name for name in values if name not in known and not _TRAINING.fullmatch(name)]


def _check_feature(values: Mapping[str, Any], group: str, name: str, limit: int, field: str) -> None:
    features = values.get(group) or {}
    if not isinstance(features, Mapping):
        raise ValueError(f"{group}: expected an object, got {features!r}")
    feature = features.get(name)
    if feature is None:
        return
    shape = feature.get("shape") if isinstance(feature, Mapping) else None
    if not isinstance(shape, list) or len(shape) != 1 or not 0 < _count(f"{group}.{name}.shape", shape[0]) <= limit:
        raise ValueError(f"{group}.{name}: expected a shape of 1 to {field} = {limit} entries, got {feature!r}")


def _dtype(values: Mapping[str, Any]) -> str:
    dtype = values.get("dtype", "bfloat16")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
    return dtype


def _square(name: str, value: object) -> int:
    if not isinstance(value, list) or len(value) != 2 or value[0] != value[1]:  # noqa: PLR2004 -- height, width
        raise ValueError(f"{name}: expected [side, side], got {value!r}")
    return _count(name, value[0])


def _checked(kind: str, fits: Callable[[Any], bool], name: str, value: object) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(value, bool) is not (kind == "true or false") or not fits(value):
        raise ValueError(f"{name}: expected {kind}, got {value!r}")
    return value


def _count(name: str, value: object) -> int:
    return _checked("a whole number above 0", lambda number: isinstance(number, int) and number > 0, name, value)


def _number(name: str, value: object) -> float:
    def fits(number: object) -> bool:
        return isinstance(number, int | float) and math.isfinite(number)

    return float(_checked("a finite number", fits, name, value))


def _flag(name: str, value: object) -> bool:
    return _checked("true or false", lambda flag: isinstance(flag, bool), name, value)
