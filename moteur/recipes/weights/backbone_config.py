"""A backbone's `config.json` against our configuration: every size and constant, one by one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moteur.recipes.config import InternVLAA1Config, InternVLVision, Qwen3VLVision

_ABSENT = "nothing"
_HARMLESS_SCALING = {"default", "dynamic"}  # dynamic: as default up to the backbone's own context length


@dataclass(frozen=True)
class _Check:
    """One number that has to agree.

    Attributes:
        field: Ours, as `accept` names it.
        paths: Where the backbone may state it, the first that is there counts.
        expected: What ours makes of it.
    """

    field: str
    paths: tuple[str, ...]
    expected: object


def check_backbone_config(
    values: Mapping[str, Any], config: InternVLAA1Config, *, accept: Collection[str] = ()
) -> tuple[str, ...]:
    """Compare every size and constant that a backbone's `config.json` states with ours.

    Args:
        values: Its fields.
        config: Ours.
        accept: Our fields that may differ.

    Returns:
        Notes about accepted differences.

    Raises:
        ValueError: Fields differ, or are not stated: all are listed, each with what was expected and what was found. Or
            `accept` names a field that is not compared.
    """
    checks = (
        _qwen3_vl(config, config.vision)
        if isinstance(config.vision, Qwen3VLVision)
        else _internvl(config, config.vision)
    )
    known = {check.field for check in checks}
    unknown = sorted(set(accept) - known)
    if unknown:
        raise ValueError(f"accept: expected some of {sorted(known)}, got {unknown}")
    differing = [(check, found) for check in checks if not _same(found := _find(values, check), check.expected)]
    refused = [
        f"{check.field}: expected {check.expected!r}, found {found!r} ({check.paths[0]})"
        for check, found in differing
        if check.field not in accept
    ]
    if refused:
        raise ValueError(
            "the backbone's config.json does not agree with config:\n  "
            + "\n  ".join(refused)
            + "\n  change config, or name in accept= what is meant to differ"
        )
    return tuple(
        f"{check.field} is {check.expected!r}, and the backbone was trained with {found!r}"
        for check, found in differing
    )


def _qwen3_vl(config: InternVLAA1Config, vision: Qwen3VLVision) -> list[_Check]:
    return [
        _Check("model_type", ("model_type",), "qwen3_vl"),
        *_text(config),
        _Check("head_dim", ("text_config.head_dim",), config.head_dim),
        _Check("qkv_bias", ("text_config.attention_bias",), config.qkv_bias),
        _Check("qk_norm", ("model_type",), "qwen3_vl" if config.qk_norm else "a model without query and key norms"),
        _Check("rope_sections", _rope("mrope_section"), config.rope_sections),
        _Check("rope_sections", _rope("mrope_interleaved"), True),  # noqa: FBT003 -- the field's value
        *_tokens(config),
        _Check("vision.depth", ("vision_config.depth",), vision.depth),
        _Check("vision.dim", ("vision_config.hidden_size",), vision.dim),
        _Check("vision.mlp_dim", ("vision_config.intermediate_size",), vision.mlp_dim),
        _Check("vision.heads", ("vision_config.num_heads",), vision.heads),
        _Check("vision.patch", ("vision_config.patch_size",), vision.patch),
        _Check("vision.patch_frames", ("vision_config.temporal_patch_size",), vision.patch_frames),
        _Check("vision.merge", ("vision_config.spatial_merge_size",), vision.merge),
        _Check("vision.positions", ("vision_config.num_position_embeddings",), vision.positions),
        _Check("vision.deepstack", ("vision_config.deepstack_visual_indexes",), vision.deepstack),
        _Check("und.dim", ("vision_config.out_hidden_size",), config.und.dim),
        _Check("vision.activation", ("vision_config.hidden_act",), "gelu_pytorch_tanh"),
        _Check("vision.channels", ("vision_config.in_channels",), 3),
        # Older configurations do not state this one: it was a constant of the code, 10,000.
        _Check("vision.rope_base", ("vision_config.rope_parameters.rope_theta", "=10000.0"), vision.rope_base),
    ]


def _internvl(config: InternVLAA1Config, vision: InternVLVision) -> list[_Check]:
    return [
        _Check("model_type", ("model_type",), "internvl"),
        _Check("text.model_type", ("text_config.model_type",), "qwen2"),
        *_text(config),
        # Qwen2's configuration states neither: heads share the width, queries, keys and values have biases.
        _Check("head_dim", ("text_config.head_dim", f"={config.und.dim // config.heads}"), config.head_dim),
        _Check("qkv_bias", ("=True",), config.qkv_bias),
        _Check("qk_norm", ("=False",), config.qk_norm),
        _Check("text_scaling", ("=False",), config.text_scaling),
        *_tokens(config),
        _Check("vision.depth", ("vision_config.num_hidden_layers",), vision.depth),
        _Check("vision.dim", ("vision_config.hidden_size",), vision.dim),
        _Check("vision.mlp_dim", ("vision_config.intermediate_size",), vision.mlp_dim),
        _Check("vision.heads", ("vision_config.num_attention_heads",), vision.heads),
        _Check("vision.size", ("vision_config.image_size",), (vision.size, vision.size)),
        _Check("vision.patch", ("vision_config.patch_size",), (vision.patch, vision.patch)),
        _Check("vision.merge", ("downsample_ratio",), 1 / vision.merge),
        _Check("vision.norm_eps", ("vision_config.layer_norm_eps",), vision.norm_eps),
        _Check("vision.attention_bias", ("vision_config.attention_bias",), vision.attention_bias),
        _Check("vision.norm", ("vision_config.norm_type",), "layer_norm"),
        _Check("vision.qk_norm", ("vision_config.use_qk_norm",), False),  # noqa: FBT003 -- the field's value
        _Check("vision.activation", ("vision_config.hidden_act",), "gelu"),
        _Check("vision.projector_activation", ("projector_hidden_act",), "gelu"),
        _Check("vision.layer", ("vision_feature_layer",), -1),
        _Check("vision.class_token", ("vision_feature_select_strategy",), "default"),
    ]


def _text(config: InternVLAA1Config) -> list[_Check]:
    return [
        _Check("depth", ("text_config.num_hidden_layers",), config.depth),
        _Check("heads", ("text_config.num_attention_heads",), config.heads),
        _Check("kv_heads", ("text_config.num_key_value_heads",), config.kv_heads),
        _Check("und.dim", ("text_config.hidden_size",), config.und.dim),
        _Check("und.mlp_dim", ("text_config.intermediate_size",), config.und.mlp_dim),
        _Check("norm_eps", ("text_config.rms_norm_eps",), config.norm_eps),
        _Check("vocabulary", ("text_config.vocab_size",), config.vocabulary),
        _Check("activation", ("text_config.hidden_act",), "silu"),
        _Check("rope_base", _rope("rope_theta"), config.rope_base),
        _Check("rope_kind", _rope("rope_type"), "default"),
    ]


def _tokens(config: InternVLAA1Config) -> list[_Check]:
    ids = config.token_ids
    named = {"image": ids.image, "vision_start": ids.vision_start, "vision_end": ids.vision_end}
    return [
        _Check(f"token_ids.{name}", (f"{name}_token_id",), token) for name, token in named.items() if token is not None
    ]


def _rope(name: str) -> tuple[str, ...]:
    """The rotary settings have moved between versions of transformers."""
    places = (f"text_config.rope_parameters.{name}", f"text_config.rope_scaling.{name}", f"text_config.{name}")
    return (*places, "text_config.rope_scaling.type", "=default") if name == "rope_type" else places


_LITERALS: Mapping[str, Callable[[str], object]] = {
    "True": lambda _: True,
    "False": lambda _: False,
    "default": str,
}


def _find(values: Mapping[str, Any], check: _Check) -> object:
    for path in check.paths:
        if path.startswith("="):
            text = path.removeprefix("=")
            return _LITERALS.get(text, float)(text)
        place: Any = values
        for part in path.split("."):
            place = place.get(part, _ABSENT) if isinstance(place, Mapping) else _ABSENT
        if place is not _ABSENT and place is not None:
            return place
    return _ABSENT


def _same(found: object, expected: object) -> bool:
    if isinstance(found, list):
        found = tuple(found)
    if expected == "default" and isinstance(found, str) and found in _HARMLESS_SCALING:
        return True
    if isinstance(found, bool) is not isinstance(expected, bool):
        return False
    return found == expected
