"""`config.json` of our own layout and of released checkpoints, read strictly."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter

from moteur.files import parse, read_json
from moteur.recipes.checkpoints.keymap import Config, Release
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.pi0_config import Pi0Config
from moteur.recipes.presets import preset

OWN_TYPES: Mapping[str, type[Config]] = {"moteur/internvla_a1": InternVLAA1Config, "moteur/pi0": Pi0Config}
"""Values of `type` in our own layout, and the configurations that they stand for."""

_VERSION = 2
# The adapter of a dataclass takes no settings; the union with None hands them down to every dataclass inside.
_OBJECT = TypeAdapter(dict[str, Any])
_STRICT = ConfigDict(extra="forbid")
_OWN: Mapping[type[Config], TypeAdapter[Any]] = {
    InternVLAA1Config: TypeAdapter(InternVLAA1Config | None, config=_STRICT),
    Pi0Config: TypeAdapter(Pi0Config | None, config=_STRICT),
}

_Count = Annotated[int, Field(gt=0)]
_SHAPE = TypeAdapter(tuple[_Count])


@dataclass(frozen=True)
class _Fields:
    """Fields of a released `config.json`, by the names of ours that they state.

    Attributes:
        counts: Whole numbers.
        numbers: Others.
        sizes: Names of sizes: which release has them, and their released value, or None for any.
        types: Values of `type`, and whose they are.
        ignored: What is about training or other machinery.
        precision: Name of the number format.
    """

    counts: Mapping[str, str]
    numbers: Mapping[str, str]
    sizes: Mapping[str, Mapping[Release, str | None]]
    types: Mapping[object, Release]
    ignored: re.Pattern[str]
    precision: str = "dtype"

    @property
    def ours(self) -> dict[str, str]:
        """Their names by ours."""
        return {**self.counts, **self.numbers}

    @property
    def known(self) -> dict[str, Any]:
        """Schema of what each field may hold."""
        return {
            **dict.fromkeys((*self.counts.values(), "n_action_steps"), TypeAdapter(_Count)),
            **dict.fromkeys(self.numbers.values(), TypeAdapter(FiniteFloat)),
            "image_resolution": TypeAdapter(tuple[_Count, _Count]),
            self.precision: TypeAdapter(Literal["bfloat16", "float32"]),
            **dict.fromkeys(("input_features", "output_features"), TypeAdapter(dict[str, dict[str, Any]] | None)),
        }


_TIMES = {
    "min_period": "min_period",
    "max_period": "max_period",
    "time.alpha": "time_sampling_beta_alpha",
    "time.beta": "time_sampling_beta_beta",
    "time.scale": "time_sampling_scale",
    "time.offset": "time_sampling_offset",
}
_COUNTS = {
    "chunk": "chunk_size",
    "state_dim": "max_state_dim",
    "action_dim": "max_action_dim",
    "steps": "num_inference_steps",
    "text_length": "tokenizer_max_length",
}
# Fields about training and of LeRobot's own machinery.
_MACHINERY = (
    r"(optimizer|scheduler)_.*|n_obs_steps|normalization_mapping|device|use_amp|push_to_hub|repo_id|private|tags|license|"
    r"pretrained_path|gradient_checkpointing|compile_model|compile_mode|use_peft|empty_cameras|"
    r"freeze_vision_encoder|train_expert_only|type"
)
_INTERNVLA = _Fields(
    counts={**_COUNTS, "foresight_cell": "scale_factor"},
    numbers={**_TIMES, "foresight_weight": "lambda_gen"},
    sizes={
        "qwen3_vl_variant": {"3B": "qwen3_vl_28l"},
        "action_expert_variant": {"3B": "qwen3_28l", "2B": None},
        "internvl_variant": {"2B": None},
        "qwen2_variant": {"2B": None},
    },
    types={"qwena1": "3B"},  # the 2B weights are not published: their keys tell that variant
    ignored=re.compile(
        f"{_MACHINERY}|qwen3_vl_pretrained_path|qwen3_vl_processor_path|cosmos_tokenizer_path_or_name|train_vlm_only"
    ),
)
_GEMMAS: Mapping[str, Mapping[Release, str | None]] = {
    "paligemma_variant": {"pi0": "gemma_2b", "pi05": "gemma_2b"},
    "action_expert_variant": {"pi0": "gemma_300m", "pi05": "gemma_300m"},
}
# How actions are made relative, and how they are normalised, stands in the preprocessor's file.
_PI_OF_LEROBOT = _Fields(
    counts=_COUNTS,
    numbers=_TIMES,
    sizes=_GEMMAS,
    types={"pi0": "pi0", "pi05": "pi05"},
    ignored=re.compile(f"{_MACHINERY}|rtc_config|use_relative_actions|relative_exclude_joints|action_feature_names"),
)
_PI_OF_OPENPI = _Fields(
    counts={"chunk": "action_horizon", "action_dim": "action_dim", "state_dim": "action_dim"},
    numbers={},
    sizes=_GEMMAS,
    types={None: "pi0"},
    ignored=re.compile(r"type"),
    precision="precision",
)


def _fields_of(values: Mapping[str, Any], variant: Release) -> _Fields:
    if variant in {"3B", "2B"}:
        return _INTERNVLA
    return _PI_OF_OPENPI if "action_horizon" in values else _PI_OF_LEROBOT


def config_to_json(config: Config) -> dict[str, Any]:
    """JSON values of a configuration: every field, with type and version of the layout.

    Examples:
        >>> values = config_to_json(preset("3B"))
        >>> values["type"], values["vision"]["kind"]
        ('moteur/internvla_a1', 'Qwen3VLVision')
        >>> config_from_json(values) == preset("3B")
        True
    """
    kind = next(name for name, of in OWN_TYPES.items() if isinstance(config, of))
    return {"type": kind, "version": _VERSION, **json.loads(json.dumps(asdict(config)))}


def config_from_json(values: Mapping[str, Any]) -> Config:
    """Configuration of JSON values of our own layout.

    Raises:
        ValueError: A field is missing, unknown or of another type, or the sizes fit no model; the message names it.
    """
    rest = dict(values)
    if (found := rest.pop("type", None)) not in list(OWN_TYPES):
        raise ValueError(f"type: expected {' or '.join(map(repr, OWN_TYPES))}, got {found!r}")
    if (version := rest.pop("version", None)) not in {1, _VERSION} or isinstance(version, bool | float):
        raise ValueError(f"version: expected 1 or {_VERSION}, got {version!r}")
    if version == 1:
        rest["time"] = _time_of_version_1(rest.get("time"))
    config = parse(_OWN[OWN_TYPES[found]], rest, strict=True)
    assert config is not None
    return config


def read_released_config(
    values: Mapping[str, Any], variant: Release, *, config: Config | None = None
) -> tuple[Config, tuple[str, ...]]:
    """Configuration that the fields of a released `config.json` state, and notes about unknown ones and differences.

    What they leave out is as released for the `variant` of the tensors beside it. A `config` is used instead, for a
    model that is not of a released size.

    Raises:
        ValueError: A known field has a value it cannot have, or contradicts another one or the tensors.

    Examples:
        >>> config, notes = read_released_config({"type": "qwena1", "num_inference_steps": 5, "knob": 1}, "3B")
        >>> config.steps, notes
        (5, ('knob = 1 in config.json is unknown here and was ignored',))
        >>> config, notes = read_released_config({"type": "pi05", "chunk_size": 10}, "pi05")
        >>> config.chunk, config.text_length
        (10, 200)
    """
    layout = _fields_of(values, variant)
    _check_variant(layout, values, variant, sizes_given=config is not None)
    known = layout.known
    fields = {name: parse(known[name], value, name, strict=True) for name, value in values.items() if name in known}
    stated = {ours: fields[theirs] for ours, theirs in layout.ours.items() if theirs in fields}
    if "image_resolution" in fields:
        stated["vision.size" if layout is _PI_OF_LEROBOT else "frame_size"] = fields["image_resolution"][0]
    if layout is _PI_OF_LEROBOT and (cameras := cameras_of(values)):
        stated["views"] = len(cameras)
    usual = config or preset(variant)
    of_parts: dict[str, dict[str, Any]] = {"time": {}, "vision": {}}
    for name, value in stated.items():
        part, _, number = name.rpartition(".")
        if part:
            of_parts[part][number] = value
    parts: dict[str, Any] = {part: replace(getattr(usual, part), **numbers) for part, numbers in of_parts.items()}
    if config is None:
        config = replace(usual, **parts, **{name: value for name, value in stated.items() if "." not in name})
    _check_fields(fields, config)
    notes: list[str] = []
    if (kind := values.get("type")) not in list(layout.types):
        notes.append(f"type {kind!r} in config.json is unknown here, the tensors are those of the {variant} variant")
    notes += [
        f"{name} = {value!r} in config.json is unknown here and was ignored"
        for name, value in values.items()
        if name not in {*known, *layout.sizes} and not layout.ignored.fullmatch(name)
    ]
    notes += [
        f"{name} is {mine!r} as asked for, {value!r} in config.json"
        for name, value in stated.items()
        if (mine := attrgetter(name)(config)) != value
    ]
    return config, tuple(notes)


def restated(values: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Fields of a released `config.json` with the numbers of another configuration.

    A number that the fields leave out is added where it is not the variant's own; a chunk shorter than
    `n_action_steps` shortens that too.
    """
    layout = _fields_of(values, config.variant)

    def numbers(of: Config) -> dict[str, Any]:
        found = {theirs: attrgetter(ours)(of) for ours, theirs in layout.ours.items()}
        return found if layout is _PI_OF_OPENPI else found | {"image_resolution": [of.frame_size, of.frame_size]}

    mine, usual = numbers(config), numbers(preset(config.variant))
    stated = {name: number for name, number in mine.items() if number != values.get(name, usual[name])}
    named = {**values, **stated}
    steps = named.get("n_action_steps")
    if isinstance(steps, int) and steps > config.chunk:
        named["n_action_steps"] = config.chunk
    return named


def cameras_of(values: Mapping[str, Any]) -> list[str]:
    """Names of the cameras of a `config.json` in LeRobot's form, in its order."""
    features: Mapping[str, Any] = values.get("input_features") or {}
    kinds = {name: feature.get("type") for name, feature in features.items() if isinstance(feature, Mapping)}
    return [name for name, kind in kinds.items() if kind == "VISUAL"]


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


def _check_variant(layout: _Fields, values: Mapping[str, Any], variant: Release, *, sizes_given: bool) -> None:
    kind = values.get("type")
    if isinstance(kind, str) and layout.types.get(kind, variant) != variant:
        raise ValueError(f"type: {kind!r} is the {layout.types[kind]} variant, and the tensors are those of {variant}")
    for name in layout.sizes.keys() & values.keys():
        owners, found = layout.sizes[name], values[name]
        if variant not in owners:
            raise ValueError(
                f"{name}: {found!r} belongs to {next(iter(owners))}, and the tensors are those of {variant}"
            )
        if owners[variant] not in {None, found} and not sizes_given:
            raise ValueError(f"{name}: expected {owners[variant]!r}, got {found!r}; other sizes need config=")


def _check_fields(fields: Mapping[str, Any], config: Config) -> None:
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
