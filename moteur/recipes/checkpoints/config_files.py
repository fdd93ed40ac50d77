"""`config.json` of our own layout and of released checkpoints, read strictly."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from moteur.files import parse, read_json
from moteur.recipes.config import InternVLAA1Config, Variant
from moteur.recipes.presets import preset

OWN_TYPE = "moteur/internvla_a1"
TYPES: Mapping[object, Variant] = {"qwena1": "3B"}
"""Values of `type` in released files. The 2B weights are not published: their keys tell that variant."""

_VERSION = 2
# The adapter of a dataclass takes no settings; the union with None hands them down to every dataclass inside.
_OBJECT = TypeAdapter(dict[str, Any])
_OWN: TypeAdapter[InternVLAA1Config | None] = TypeAdapter(InternVLAA1Config | None, config=ConfigDict(extra="forbid"))

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
_NUMBERS = {
    "min_period": "min_period",
    "max_period": "max_period",
    "lambda_gen": "foresight_weight",
    "time_sampling_beta_alpha": "time.alpha",
    "time_sampling_beta_beta": "time.beta",
    "time_sampling_scale": "time.scale",
    "time_sampling_offset": "time.offset",
}
_OURS = {**_COUNTS, **_NUMBERS}
_Count = Annotated[int, Field(gt=0)]
_SHAPE = TypeAdapter(tuple[_Count])
_RELEASED: Mapping[str, TypeAdapter[Any]] = {
    **dict.fromkeys((*_COUNTS, "n_action_steps"), TypeAdapter(_Count)),
    **dict.fromkeys(_NUMBERS, TypeAdapter(FiniteFloat)),
    "image_resolution": TypeAdapter(tuple[_Count, _Count]),
    "dtype": TypeAdapter(Literal["bfloat16", "float32"]),
    **dict.fromkeys(("input_features", "output_features"), TypeAdapter(dict[str, dict[str, Any]] | None)),
}
# Fields about training and of LeRobot's own machinery.
_IGNORED = re.compile(
    r"(optimizer|scheduler)_.*|(n_obs_steps|normalization_mapping|device|use_amp|push_to_hub|repo_id|private|tags|license|"
    r"pretrained_path|gradient_checkpointing|compile_model|compile_mode|use_peft|empty_cameras|"
    r"qwen3_vl_pretrained_path|qwen3_vl_processor_path|cosmos_tokenizer_path_or_name|"
    r"freeze_vision_encoder|train_expert_only|train_vlm_only|type)"
)


def config_to_json(config: InternVLAA1Config) -> dict[str, Any]:
    """JSON values of a configuration: every field, with type and version of the layout.

    Examples:
        >>> values = config_to_json(preset("3B"))
        >>> values["type"], values["vision"]["kind"]
        ('moteur/internvla_a1', 'Qwen3VLVision')
        >>> config_from_json(values) == preset("3B")
        True
    """
    return {"type": OWN_TYPE, "version": _VERSION, **json.loads(json.dumps(asdict(config)))}


def config_from_json(values: Mapping[str, Any]) -> InternVLAA1Config:
    """Configuration of JSON values of our own layout.

    Raises:
        ValueError: A field is missing, unknown or of another type, or the sizes fit no model; the message names it.
    """
    rest = dict(values)
    if (found := rest.pop("type", None)) != OWN_TYPE:
        raise ValueError(f"type: expected {OWN_TYPE!r}, got {found!r}")
    if (version := rest.pop("version", None)) not in {1, _VERSION} or isinstance(version, bool | float):
        raise ValueError(f"version: expected 1 or {_VERSION}, got {version!r}")
    if version == 1:
        rest["time"] = _time_of_version_1(rest.get("time"))
    config = parse(_OWN, rest, strict=True)
    assert config is not None
    return config


def read_released_config(
    values: Mapping[str, Any], variant: Variant, *, config: InternVLAA1Config | None = None
) -> tuple[InternVLAA1Config, tuple[str, ...]]:
    """Configuration that the fields of a released `config.json` state, and notes about unknown ones and differences.

    What they leave out is as released for the `variant` of the tensors beside it. A `config` is used instead, for a
    model that is not of a released size.

    Raises:
        ValueError: A known field has a value it cannot have, or contradicts another one or the tensors.

    Examples:
        >>> config, notes = read_released_config({"type": "qwena1", "num_inference_steps": 5, "knob": 1}, "3B")
        >>> config.steps, notes
        (5, ('knob = 1 in config.json is unknown here and was ignored',))
    """
    _check_variant(values, variant, sizes_given=config is not None)
    fields = {
        name: parse(_RELEASED[name], value, name, strict=True) for name, value in values.items() if name in _RELEASED
    }
    stated = {ours: fields[theirs] for theirs, ours in _OURS.items() if theirs in fields}
    if "image_resolution" in fields:
        stated["frame_size"] = fields["image_resolution"][0]
    times = {name.removeprefix("time."): stated[name] for name in stated if name.startswith("time.")}
    time = replace(preset(variant).time, **times)
    if config is None:
        others = {name: value for name, value in stated.items() if not name.startswith("time.")}
        config = replace(preset(variant), time=time, **others)
    _check_fields(fields, config)
    notes: list[str] = []
    if (kind := values.get("type")) not in list(TYPES):
        notes.append(f"type {kind!r} in config.json is unknown here, the tensors are those of the {variant} variant")
    notes += [
        f"{name} = {value!r} in config.json is unknown here and was ignored"
        for name, value in values.items()
        if name not in {*_RELEASED, *_BACKBONES} and not _IGNORED.fullmatch(name)
    ]
    notes += [
        f"{name} is {mine!r} as asked for, {value!r} in config.json"
        for name, value in stated.items()
        if (mine := attrgetter(name)(config)) != value
    ]
    return config, tuple(notes)


def restated(values: Mapping[str, Any], config: InternVLAA1Config) -> dict[str, Any]:
    """Fields of a released `config.json` with the numbers of another configuration.

    A number that the fields leave out is added where it is not the variant's own; a chunk shorter than
    `n_action_steps` shortens that too.
    """

    def numbers(of: InternVLAA1Config) -> dict[str, Any]:
        found = {theirs: attrgetter(ours)(of) for theirs, ours in _OURS.items()}
        return found | {"image_resolution": [of.frame_size, of.frame_size]}

    mine, usual = numbers(config), numbers(preset(config.variant))
    stated = {name: number for name, number in mine.items() if number != values.get(name, usual[name])}
    named = {**values, **stated}
    steps = named.get("n_action_steps")
    if isinstance(steps, int) and steps > config.chunk:
        named["n_action_steps"] = config.chunk
    return named


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object of a configuration file; an error names a file that is missing or damaged."""
    if not path.is_file():
        adapter = (path.parent / "adapter_config.json").is_file()
        hint = "; it looks like a LoRA adapter: merge it into its base model first" if adapter else ""
        raise ValueError(f"{path.parent}: expected a {path.name} in it, got none{hint}")
    return parse(_OBJECT, read_json(path), path, strict=True)


def write_json(path: Path, values: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write JSON values into a file."""
    path.write_text(json.dumps(values, indent=indent) + "\n", encoding="utf-8")


def _time_of_version_1(time: object) -> object:
    """`time` named the end of the flow at which its numbers are 1; now 1 is noise and `reverse` says otherwise."""
    if not isinstance(time, dict) or "clock" not in time:
        return time
    if time["clock"] not in {"noise", "data"}:
        raise ValueError(f"time.clock: expected 'noise' or 'data', got {time['clock']!r}")
    return {name: value for name, value in time.items() if name != "clock"} | {"reverse": time["clock"] == "data"}


def _check_variant(values: Mapping[str, Any], variant: Variant, *, sizes_given: bool) -> None:
    kind = values.get("type")
    if isinstance(kind, str) and TYPES.get(kind, variant) != variant:
        raise ValueError(f"type: {kind!r} is the {TYPES[kind]} variant, and the tensors are those of {variant}")
    for name in _BACKBONES.keys() & values.keys():
        owners, found = _BACKBONES[name], values[name]
        if variant not in owners:
            raise ValueError(
                f"{name}: {found!r} belongs to {next(iter(owners))}, and the tensors are those of {variant}"
            )
        if owners[variant] not in {None, found} and not sizes_given:
            raise ValueError(f"{name}: expected {owners[variant]!r}, got {found!r}; other sizes need config=")


def _check_fields(fields: Mapping[str, Any], config: InternVLAA1Config) -> None:
    """Refuse fields of a released file that contradict each other."""
    height, width = fields.get("image_resolution", (0, 0))
    if height != width:
        raise ValueError(f"image_resolution: expected [side, side], got {[height, width]}")
    if (steps := fields.get("n_action_steps", 0)) > config.chunk:
        raise ValueError(f"n_action_steps: expected at most chunk_size = {config.chunk}, got {steps}")
    for group, name, limit in (
        ("input_features", "observation.state", "state"),
        ("output_features", "action", "action"),
    ):
        feature, most = (fields.get(group) or {}).get(name), getattr(config, f"{limit}_dim")
        if feature is None:
            continue
        (found,) = parse(_SHAPE, feature.get("shape"), f"{group}.{name}.shape", strict=True)
        if found > most:
            raise ValueError(f"{group}.{name}.shape: expected at most max_{limit}_dim = {most}, got [{found}]")
