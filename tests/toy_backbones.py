"""Vision-language backbones at toy size, as `transformers` makes them, and our configurations that fit them."""

from dataclasses import replace

import transformers
from toy_model import toy_config, toy_config_2b

from moteur.recipes import InternVLAA1Config
from moteur.recipes.config import Variant

BEFORE_5 = transformers.__version__.startswith("4.")
if BEFORE_5:
    from transformers.models.qwen2_vl import image_processing_qwen2_vl as _theirs

    Qwen2VLImageProcessor = _theirs.Qwen2VLImageProcessor
else:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as _theirs

    Qwen2VLImageProcessor = _theirs.Qwen2VLImageProcessorPil
smart_resize = _theirs.smart_resize

CONFIGS: dict[Variant, InternVLAA1Config] = {
    "3B": replace(toy_config(), vision=replace(toy_config().vision, depth=2, deepstack=(0,))),
    "2B": replace(
        toy_config_2b(),
        heads=3,
        kv_heads=1,
        rope_base=1e6,
        text_scaling=False,
        vision=replace(toy_config_2b().vision, attention_bias=True),
    ),
}


def rope(base: float, **scaling: object) -> dict:
    """Rotary settings of a text configuration, as the installed version of `transformers` names them."""
    if BEFORE_5:
        return {"rope_theta": base, "rope_scaling": {"rope_type": "default", **scaling}}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **scaling}}


def qwen3_vl() -> transformers.PreTrainedModel:
    config = CONFIGS["3B"]
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config={
                **text_config(config),
                "head_dim": config.head_dim,
                "tie_word_embeddings": True,
                **rope(5e6, mrope_section=[2, 1, 1], mrope_interleaved=True),
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": 8,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": 24,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=3,
            vision_start_token_id=1,
            vision_end_token_id=2,
            video_token_id=4,
            tie_word_embeddings=True,
        )
    )


def internvl() -> transformers.PreTrainedModel:
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(
            text_config={
                "model_type": "qwen2",
                **text_config(CONFIGS["2B"]),
                "tie_word_embeddings": False,
                **rope(1e6),
            },
            vision_config={
                "num_hidden_layers": 1,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_attention_heads": 2,
                "patch_size": [8, 8],
                "image_size": [32, 32],
                "norm_type": "layer_norm",
                "attention_bias": True,
            },
            image_token_id=3,
            downsample_ratio=0.5,
            tie_word_embeddings=False,
        )
    )


def image_processor(variant: Variant) -> dict:
    """What `preprocessor_config.json` states of a backbone's pixels."""
    vision = CONFIGS[variant].vision
    values = {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }
    if variant == "2B":
        return values
    sizes = {"patch_size": vision.patch, "temporal_patch_size": vision.patch_frames, "merge_size": vision.merge}
    limits = {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels}
    return {**values, **sizes, "resample": 3, "size": limits}


def text_config(config: InternVLAA1Config) -> dict:
    return {
        "hidden_size": config.und.dim,
        "intermediate_size": config.und.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "vocab_size": config.vocabulary,
        "rms_norm_eps": config.norm_eps,
    }
