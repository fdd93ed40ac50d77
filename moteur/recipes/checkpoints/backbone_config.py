"""A backbone's numbers against our configuration: every size and constant, one by one."""

from collections.abc import Collection, Mapping
from typing import Any

from moteur.recipes.checkpoints.agreement import Check, differences
from moteur.recipes.checkpoints.backbone_pixels import OLD, pixel_checks
from moteur.recipes.config import InternVLAA1Config, InternVLVision, Qwen3VLVision

_CONFIG = "config.json"


def check_backbone_config(
    values: Mapping[str, Any],
    config: InternVLAA1Config,
    *,
    pixels: Mapping[str, Mapping[str, Any]],
    accept: Collection[str] = (),
) -> tuple[str, ...]:
    """Compare every size and constant that a backbone's files state with ours.

    Args:
        values: Fields of its `config.json`.
        config: Ours.
        pixels: What its processor's files say, by their names.
        accept: Our fields that may differ.

    Returns:
        Notes about accepted differences, and about what could not be compared.

    Raises:
        ValueError: Fields differ, or are not stated: all are listed, each with what was expected and what was found. Or
            `accept` names a field that is not compared.
    """
    vision = config.vision
    checks = _qwen3_vl(config, vision) if isinstance(vision, Qwen3VLVision) else _internvl(config, vision)
    of_pixels = pixel_checks(config)
    known = {check.field for check in (*checks, *of_pixels)}
    unknown = sorted(set(accept) - known)
    if unknown:
        raise ValueError(f"accept: expected some of {sorted(known)}, got {unknown}")
    found = differences(_CONFIG, values, checks)
    for file, stated in pixels.items():
        found += differences(file, stated, of_pixels)
    refused = [str(difference) for difference in found if difference.check.field not in accept]
    if refused:
        raise ValueError(
            "the backbone does not agree with config:\n  "
            + "\n  ".join(refused)
            + "\n  change config, or name in accept= what is meant to differ"
        )
    notes = [
        f"{difference.check.field} is {difference.check.expected!r}, and the backbone was trained with "
        f"{difference.found!r}"
        for difference in found
    ]
    if not pixels:
        notes.append(f"the backbone comes without {OLD}: its pixels' mean and deviation could not be compared")
    return tuple(notes)


def _qwen3_vl(config: InternVLAA1Config, vision: Qwen3VLVision) -> list[Check]:
    return [
        Check("model_type", ("model_type",), "qwen3_vl"),
        *_text(config),
        Check("head_dim", ("text_config.head_dim",), config.head_dim),
        Check("qkv_bias", ("text_config.attention_bias",), config.qkv_bias),
        Check("qk_norm", ("model_type",), "qwen3_vl" if config.qk_norm else "a model without query and key norms"),
        Check("rope_sections", _rope("mrope_section"), config.rope_sections),
        Check("rope_sections", _rope("mrope_interleaved"), expected=True),
        *_tokens(config),
        Check("vision.depth", ("vision_config.depth",), vision.depth),
        Check("vision.dim", ("vision_config.hidden_size",), vision.dim),
        Check("vision.mlp_dim", ("vision_config.intermediate_size",), vision.mlp_dim),
        Check("vision.heads", ("vision_config.num_heads",), vision.heads),
        Check("vision.patch", ("vision_config.patch_size",), vision.patch),
        Check("vision.patch_frames", ("vision_config.temporal_patch_size",), vision.patch_frames),
        Check("vision.merge", ("vision_config.spatial_merge_size",), vision.merge),
        Check("vision.positions", ("vision_config.num_position_embeddings",), vision.positions),
        Check("vision.deepstack", ("vision_config.deepstack_visual_indexes",), vision.deepstack),
        Check("und.dim", ("vision_config.out_hidden_size",), config.und.dim),
        Check("vision.activation", ("vision_config.hidden_act",), "gelu_pytorch_tanh"),
        Check("vision.channels", ("vision_config.in_channels",), 3),
        # Older configurations do not state this one: it was a constant of the code, 10,000.
        Check("vision.rope_base", ("vision_config.rope_parameters.rope_theta",), vision.rope_base, 10_000.0),
        Check("vision.rope_kind", ("vision_config.rope_parameters.rope_type",), "axial", "axial"),
    ]


def _internvl(config: InternVLAA1Config, vision: InternVLVision) -> list[Check]:
    return [
        Check("model_type", ("model_type",), "internvl"),
        Check("text.model_type", ("text_config.model_type",), "qwen2"),
        *_text(config),
        # Qwen2's configuration states neither: heads share the width, queries, keys and values have biases.
        Check("head_dim", ("text_config.head_dim",), config.head_dim, config.und.dim // config.heads),
        Check("qkv_bias", (), config.qkv_bias, unstated=True),
        Check("qk_norm", (), config.qk_norm, unstated=False),
        Check("text_scaling", (), config.text_scaling, unstated=False),
        Check("sliding_window", ("text_config.use_sliding_window",), expected=False, unstated=False),
        *_tokens(config),
        Check("vision.depth", ("vision_config.num_hidden_layers",), vision.depth),
        Check("vision.dim", ("vision_config.hidden_size",), vision.dim),
        Check("vision.mlp_dim", ("vision_config.intermediate_size",), vision.mlp_dim),
        Check("vision.heads", ("vision_config.num_attention_heads",), vision.heads),
        Check("vision.size", ("vision_config.image_size",), (vision.size, vision.size)),
        Check("vision.patch", ("vision_config.patch_size",), (vision.patch, vision.patch)),
        Check("vision.merge", ("downsample_ratio",), 1 / vision.merge),
        Check("vision.norm_eps", ("vision_config.layer_norm_eps",), vision.norm_eps),
        Check("vision.attention_bias", ("vision_config.attention_bias",), vision.attention_bias),
        Check("vision.norm", ("vision_config.norm_type",), "layer_norm"),
        Check("vision.qk_norm", ("vision_config.use_qk_norm",), expected=False),
        Check("vision.channels", ("vision_config.num_channels",), 3, 3),
        Check("vision.positions", ("vision_config.use_absolute_position_embeddings",), expected=True, unstated=True),
        Check("vision.mask_token", ("vision_config.use_mask_token",), expected=False, unstated=False),
        Check("vision.mean_pooling", ("vision_config.use_mean_pooling",), expected=True, unstated=True),
        Check("vision.dropout", ("vision_config.attention_dropout",), 0.0, 0.0),
        Check("vision.dropout", ("vision_config.hidden_dropout_prob",), 0.0, 0.0),
        Check("vision.dropout", ("vision_config.projection_dropout",), 0.0, 0.0),
        # A constant of its code: the epsilon of PyTorch's layer norm.
        Check("vision.projector_eps", (), vision.projector_eps, 1e-5),
        Check("vision.activation", ("vision_config.hidden_act",), "gelu"),
        Check("vision.projector_activation", ("projector_hidden_act",), "gelu"),
        Check("vision.layer", ("vision_feature_layer",), -1),
        Check("vision.class_token", ("vision_feature_select_strategy",), "default"),
    ]


def _text(config: InternVLAA1Config) -> list[Check]:
    return [
        Check("depth", ("text_config.num_hidden_layers",), config.depth),
        Check("heads", ("text_config.num_attention_heads",), config.heads),
        Check("kv_heads", ("text_config.num_key_value_heads",), config.kv_heads),
        Check("und.dim", ("text_config.hidden_size",), config.und.dim),
        Check("und.mlp_dim", ("text_config.intermediate_size",), config.und.mlp_dim),
        Check("norm_eps", ("text_config.rms_norm_eps",), config.norm_eps),
        Check("vocabulary", ("text_config.vocab_size",), config.vocabulary),
        Check("activation", ("text_config.hidden_act",), "silu"),
        Check("rope_base", _rope("rope_theta"), config.rope_base),
        Check("rope_kind", _rope("rope_type"), "default", "default"),
        Check("dropout", ("text_config.attention_dropout",), 0.0, 0.0),
        Check("layer_types", ("text_config.layer_types",), _full(config), _full(config)),
    ]


def _tokens(config: InternVLAA1Config) -> list[Check]:
    ids = config.token_ids
    named = {"image": ids.image, "vision_start": ids.vision_start, "vision_end": ids.vision_end}
    return [
        Check(f"token_ids.{name}", (f"{name}_token_id",), token) for name, token in named.items() if token is not None
    ]


def _rope(name: str) -> tuple[str, ...]:
    """The rotary settings have moved between versions of transformers."""
    places = (f"text_config.rope_parameters.{name}", f"text_config.rope_scaling.{name}", f"text_config.{name}")
    return (*places, "text_config.rope_scaling.type") if name == "rope_type" else places


def _full(config: InternVLAA1Config) -> tuple[str, ...]:
    return ("full_attention",) * config.depth
