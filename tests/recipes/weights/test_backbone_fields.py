"""Every field of a backbone's `config.json` that decides what it computes: changed, it is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moteur.recipes import InternVLAA1
from moteur.recipes.config import Variant

TEXT = {
    "text_config.num_hidden_layers": 7,
    "text_config.num_attention_heads": 12,
    "text_config.num_key_value_heads": 6,
    "text_config.hidden_size": 96,
    "text_config.intermediate_size": 17,
    "text_config.rms_norm_eps": 1e-3,
    "text_config.vocab_size": 999,
    "text_config.hidden_act": "relu",
    "text_config.rope_parameters.rope_theta": 3.0,
    "text_config.rope_parameters.rope_type": "linear",
}
FIELDS: dict[Variant, dict[str, object]] = {
    "3B": TEXT
    | {
        "model_type": "qwen2_vl",
        "text_config.head_dim": 64,
        "text_config.attention_bias": True,
        "text_config.rope_parameters.mrope_section": [1, 2, 1],
        "text_config.rope_parameters.mrope_interleaved": False,
        "image_token_id": 77,
        "vision_start_token_id": 78,
        "vision_end_token_id": 79,
        "vision_config.depth": 5,
        "vision_config.hidden_size": 48,
        "vision_config.intermediate_size": 25,
        "vision_config.num_heads": 4,
        "vision_config.patch_size": 4,
        "vision_config.temporal_patch_size": 1,
        "vision_config.spatial_merge_size": 4,
        "vision_config.num_position_embeddings": 25,
        "vision_config.deepstack_visual_indexes": [1],
        "vision_config.out_hidden_size": 12,
        "vision_config.hidden_act": "gelu",
        "vision_config.in_channels": 1,
    },
    "2B": TEXT
    | {
        "model_type": "llava",
        "text_config.model_type": "llama",
        "image_token_id": 77,
        "vision_config.num_hidden_layers": 5,
        "vision_config.hidden_size": 48,
        "vision_config.intermediate_size": 25,
        "vision_config.num_attention_heads": 4,
        "vision_config.image_size": [64, 64],
        "vision_config.patch_size": [4, 4],
        "downsample_ratio": 0.25,
        "vision_config.layer_norm_eps": 1e-3,
        "vision_config.attention_bias": False,
        "vision_config.norm_type": "rms_norm",
        "vision_config.use_qk_norm": True,
        "vision_config.hidden_act": "relu",
        "projector_hidden_act": "relu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full",
    },
}


@pytest.mark.parametrize(("variant", "field"), [(variant, field) for variant in FIELDS for field in FIELDS[variant]])
def test_a_field_that_differs_is_refused_by_its_name(
    variant: Variant, field: str, folders: dict[str, Path], start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    for path in folders[variant].iterdir():
        (tmp_path / path.name).symlink_to(path)
    values = json.loads((tmp_path / "config.json").read_text())
    *sections, last = field.split(".")
    section = values
    for name in sections:
        section = section[name]
    assert section[last] != FIELDS[variant][field]
    section[last] = FIELDS[variant][field]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=field.rsplit(".", 1)[-1]) as refusal:
        start(tmp_path, variant)
    assert "expected" in str(refusal.value)
