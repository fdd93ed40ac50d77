"""Comparison of a vision-language backbone's files with our configuration, number by number."""

from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from moteur.recipes.checkpoints.config_files import read_config
from moteur.recipes.checkpoints.folder import CONFIG
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision

PIXELS = ("preprocessor_config.json", "processor_config.json")
"""Files that state how pixels are made; newer versions of transformers write the second."""

_BICUBIC = 3  # as Pillow counts
_OURS = object()  # the value of our own field
_REQUIRED = "nothing"


class _Field(NamedTuple):
    """One number that has to agree.

    Attributes:
        name: Our name of it, as `accept` takes it.
        path: Where the files state it; places it has moved between are separated by "|", and the first counts.
        expected: What our code computes with; by default the field of our configuration called `name`.
        unstated: What the backbone's own code takes where a file states nothing; by default a file has to state it.
    """

    name: str
    path: str
    expected: object = _OURS
    unstated: object = _REQUIRED


# Rotary settings have moved between versions of transformers.
_ROPE = "text_config.rope_parameters.{0}|text_config.rope_scaling.{0}|text_config.{0}"
_TEXT = (
    _Field("depth", "text_config.num_hidden_layers"),
    _Field("heads", "text_config.num_attention_heads"),
    _Field("kv_heads", "text_config.num_key_value_heads"),
    _Field("und.dim", "text_config.hidden_size"),
    _Field("und.mlp_dim", "text_config.intermediate_size"),
    _Field("norm_eps", "text_config.rms_norm_eps"),
    _Field("vocabulary", "text_config.vocab_size"),
    _Field("activation", "text_config.hidden_act", "silu"),
    _Field("rope_base", _ROPE.format("rope_theta")),
    # "dynamic" is as "default" up to the backbone's own context length.
    _Field(
        "rope_kind", _ROPE.format("rope_type") + "|text_config.rope_scaling.type", {"default", "dynamic"}, "default"
    ),
    _Field("dropout", "text_config.attention_dropout", 0.0, 0.0),
    _Field("token_ids.image", "image_token_id"),
)
_QWEN3_VL = (
    _Field("model_type", "model_type", "qwen3_vl"),
    *_TEXT,
    _Field("head_dim", "text_config.head_dim"),
    _Field("qkv_bias", "text_config.attention_bias"),
    _Field("qk_norm", "", unstated=True),  # its code always has both norms
    _Field("rope_sections", _ROPE.format("mrope_section")),
    _Field("rope_sections", _ROPE.format("mrope_interleaved"), expected=True),
    _Field("token_ids.vision_start", "vision_start_token_id"),
    _Field("token_ids.vision_end", "vision_end_token_id"),
    _Field("vision.depth", "vision_config.depth"),
    _Field("vision.dim", "vision_config.hidden_size"),
    _Field("vision.mlp_dim", "vision_config.intermediate_size"),
    _Field("vision.heads", "vision_config.num_heads"),
    _Field("vision.patch", "vision_config.patch_size"),
    _Field("vision.patch_frames", "vision_config.temporal_patch_size"),
    _Field("vision.merge", "vision_config.spatial_merge_size"),
    _Field("vision.positions", "vision_config.num_position_embeddings"),
    _Field("vision.deepstack", "vision_config.deepstack_visual_indexes"),
    _Field("und.dim", "vision_config.out_hidden_size"),
    _Field("vision.activation", "vision_config.hidden_act", "gelu_pytorch_tanh"),
    _Field("vision.channels", "vision_config.in_channels", 3),
    # Older configurations do not state this one: it was a constant of the code.
    _Field("vision.rope_base", "vision_config.rope_parameters.rope_theta", unstated=10_000.0),
    _Field("vision.rope_kind", "vision_config.rope_parameters.rope_type", {"axial", "default"}, "axial"),
)
_INTERNVL = (
    _Field("model_type", "model_type", "internvl"),
    _Field("text.model_type", "text_config.model_type", "qwen2"),
    *_TEXT,
    _Field("qkv_bias", "", unstated=True),  # Qwen2's code: biases, no norms, no scaling of the text
    _Field("qk_norm", "", unstated=False),
    _Field("text_scaling", "", unstated=False),
    _Field("sliding_window", "text_config.use_sliding_window", expected=False, unstated=False),
    _Field("vision.depth", "vision_config.num_hidden_layers"),
    _Field("vision.dim", "vision_config.hidden_size"),
    _Field("vision.mlp_dim", "vision_config.intermediate_size"),
    _Field("vision.heads", "vision_config.num_attention_heads"),
    _Field("vision.norm_eps", "vision_config.layer_norm_eps"),
    _Field("vision.attention_bias", "vision_config.attention_bias"),
    _Field("vision.norm", "vision_config.norm_type", "layer_norm"),
    _Field("vision.qk_norm", "vision_config.use_qk_norm", expected=False),
    _Field("vision.channels", "vision_config.num_channels", 3, 3),
    _Field("vision.positions", "vision_config.use_absolute_position_embeddings", expected=True, unstated=True),
    _Field("vision.mask_token", "vision_config.use_mask_token", expected=False, unstated=False),
    _Field("vision.mean_pooling", "vision_config.use_mean_pooling", expected=True, unstated=True),
    _Field("vision.dropout", "vision_config.attention_dropout", 0.0, 0.0),
    _Field("vision.dropout", "vision_config.hidden_dropout_prob", 0.0, 0.0),
    _Field("vision.dropout", "vision_config.projection_dropout", 0.0, 0.0),
    _Field("vision.projector_eps", "", unstated=1e-5),  # the epsilon of PyTorch's layer norm
    _Field("vision.activation", "vision_config.hidden_act", "gelu"),
    _Field("vision.projector_activation", "projector_hidden_act", "gelu"),
    _Field("vision.layer", "vision_feature_layer", -1),
    _Field("vision.class_token", "vision_feature_select_strategy", "default"),
)
_SCALES = (
    _Field("vision.mean", "image_mean"),
    _Field("vision.std", "image_std"),
    _Field("vision.rescale", "rescale_factor", 1 / 255, 1 / 255),
    _Field("vision.rescale", "do_rescale", expected=True, unstated=True),
    _Field("vision.normalize", "do_normalize", expected=True, unstated=True),
)


def check_backbone(
    folder: Path, config: InternVLAA1Config, *, accept: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare every size and constant that a backbone's files state with our configuration.

    Fields named in `accept` may differ. Returned are the values of its `config.json`, and notes about accepted
    differences and what could not be compared.

    Raises:
        ValueError: Fields differ or are not stated: each is listed with both values. Or `accept` names a field that is
            not compared.
    """
    values, pixels = read_config(folder / CONFIG), _stated_pixels(folder)
    fields, of_pixels = _fields(config), _pixel_fields(config)
    known = {field.name for field in (*fields, *of_pixels)}
    if unknown := sorted(set(accept) - known):
        raise ValueError(f"accept: expected some of {sorted(known)}, got {unknown}")
    refused: list[str] = []
    notes: list[str] = []
    for file, stated, compared in ((CONFIG, values, fields), *((*item, of_pixels) for item in pixels.items())):
        for field in compared:
            expected = attrgetter(field.name)(config) if field.expected is _OURS else field.expected
            found = _find(stated, field)
            if _same(found, expected):
                continue
            shown = min(expected) if isinstance(expected, set) else expected
            if field.name in accept:
                notes.append(f"{field.name} is {shown!r}, and the backbone was trained with {found!r}")
            else:
                place = f" ({file}: {field.path.split('|')[0]})" if field.path else ""
                refused.append(f"{field.name}: expected {shown!r}, got {found!r}{place}")
    if refused:
        raise ValueError(
            f"{folder}: the backbone does not agree with config:\n  "
            + "\n  ".join(refused)
            + "\n  change config, or name in accept= what is meant to differ"
        )
    if not pixels:
        notes.append(f"the backbone comes without {PIXELS[0]}: its pixels' mean and deviation could not be compared")
    return values, tuple(notes)


def _fields(config: InternVLAA1Config) -> tuple[_Field, ...]:
    """Fields of `config.json`; those that our configuration states in another form come with their value."""
    vision, layers = config.vision, ("full_attention",) * config.depth
    own = (_Field("layer_types", "text_config.layer_types", layers, layers),)
    if isinstance(vision, Qwen3VLVision):
        return (*_QWEN3_VL, *own)
    return (
        *_INTERNVL,
        *own,
        _Field("head_dim", "text_config.head_dim", unstated=config.und.dim // config.heads),  # heads share the width
        _Field("vision.size", "vision_config.image_size", (vision.size, vision.size)),
        _Field("vision.patch", "vision_config.patch_size", (vision.patch, vision.patch)),
        _Field("vision.merge", "downsample_ratio", 1 / vision.merge),
    )


def _pixel_fields(config: InternVLAA1Config) -> tuple[_Field, ...]:
    """Fields about pixels; how the 2B variant resizes is the recipe's own."""
    vision = config.vision
    if not isinstance(vision, Qwen3VLVision):
        return _SCALES
    return (
        *_SCALES,
        _Field("vision.patch", "patch_size", unstated=vision.patch),
        _Field("vision.patch_frames", "temporal_patch_size", unstated=vision.patch_frames),
        _Field("vision.merge", "merge_size", unstated=vision.merge),
        _Field("vision.min_pixels", "size.shortest_edge|min_pixels"),
        _Field("vision.max_pixels", "size.longest_edge|max_pixels"),
        _Field("vision.resample", "resample", _BICUBIC, _BICUBIC),
    )


def _stated_pixels(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Values about pixels by file: in one or both files, in one of them perhaps under "image_processor"."""
    found = {name: read_config(folder / name) for name in PIXELS if (folder / name).is_file()}
    parts = {name: values.get("image_processor") for name, values in found.items()}
    stated = {name: part for name, part in parts.items() if isinstance(part, Mapping)}
    return stated | ({PIXELS[0]: found[PIXELS[0]]} if PIXELS[0] in found and PIXELS[0] not in stated else {})


def _find(values: Mapping[str, Any], field: _Field) -> object:
    for path in filter(None, field.path.split("|")):
        place: Any = values
        for part in path.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        if place is not None:
            return place
    return field.unstated


def _same(found: object, expected: object) -> bool:
    if isinstance(found, list):
        found = tuple(found)
    if isinstance(expected, set):
        return isinstance(found, str) and found in expected
    return isinstance(found, bool) is isinstance(expected, bool) and found == expected
