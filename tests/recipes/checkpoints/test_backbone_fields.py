"""Every field of a backbone's files that decides what it computes: changed, it is refused by its name."""

import json
from collections.abc import Callable, Iterator
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
    "text_config.attention_dropout": 0.1,
}
PIXELS = {
    "image_mean": [0.4, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.4],
    "rescale_factor": 1.0,
    "do_rescale": False,
    "do_normalize": False,
}
OF_PIXELS: dict[Variant, dict[str, object]] = {
    "3B": PIXELS
    | {
        "patch_size": 4,
        "temporal_patch_size": 1,
        "merge_size": 4,
        "size.shortest_edge": 7,
        "size.longest_edge": 2**40,
        "resample": 2,
    },
    "2B": PIXELS,
}
# What no output depends on: bookkeeping, spreads of initial weights, limits that nothing enforces, written text.
HARMLESS = {
    "architectures",
    "dtype",
    "transformers_version",
    "image_seq_length",
    "video_token_id",
    "tie_word_embeddings",  # read, and held against the tensors
    "initializer_range",
    "layer_scale_init_value",
    "max_position_embeddings",
    "max_window_layers",  # where sliding windows would begin
    "sliding_window",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
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
        "vision_config.rope_parameters.rope_theta": 100.0,
        "vision_config.rope_parameters.rope_type": "linear",
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
        "vision_config.num_channels": 1,
        "vision_config.use_absolute_position_embeddings": False,
        "vision_config.use_mask_token": True,
        "vision_config.use_mean_pooling": False,
        "vision_config.attention_dropout": 0.1,
        "vision_config.hidden_dropout_prob": 0.1,
        "vision_config.projection_dropout": 0.1,
        "text_config.use_sliding_window": True,
        "text_config.layer_types": ["full_attention", "sliding_attention"],
    },
}


CASES = [
    (variant, file, field, value)
    for file, fields in {"config.json": FIELDS, "preprocessor_config.json": OF_PIXELS}.items()
    for variant in fields
    for field, value in fields[variant].items()
]


def changed(folder: Path, file: str, field: str, value: object) -> None:
    """Write another value into a file, which may be a link."""
    values = json.loads((folder / file).read_text())
    *sections, last = field.split(".")
    section = values
    for name in sections:
        section = section[name]
    assert section[last] != value
    section[last] = value
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(values))


def link(source: Path, target: Path) -> None:
    for path in source.iterdir():
        (target / path.name).symlink_to(path)


@pytest.mark.parametrize(("variant", "file", "field", "value"), CASES)
def test_a_field_that_differs_is_refused_by_its_name(
    variant: Variant,
    file: str,
    field: str,
    value: object,
    folders: dict[str, Path],
    start: Callable[..., InternVLAA1],
    tmp_path: Path,
) -> None:
    link(folders[variant], tmp_path)
    changed(tmp_path, file, field, value)
    with pytest.raises(ValueError, match=rf"expected .*, found .* \({file}: {field}\)"):
        start(tmp_path, variant)


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_every_field_that_a_backbone_states_is_compared_or_known_to_decide_nothing(
    variant: Variant, folders: dict[str, Path]
) -> None:
    def leaves(values: dict[str, object], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]

    stated = leaves(json.loads((folders[variant] / "config.json").read_text()))
    untested = {field for field in stated if field not in FIELDS[variant]}
    known = HARMLESS | {"model_type"}  # of the parts, beside those that are compared
    assert {field for field in untested if field.rpartition(".")[2] not in known} == set()


def test_pixels_are_compared_in_the_file_of_newer_versions_too_and_their_absence_is_noted(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    link(folders["2B"], tmp_path)
    assert start(tmp_path, "2B").loading_report.notes == ()
    old, new = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    values = json.loads(old.read_text())
    new.write_text(json.dumps({"image_processor": values | {"image_mean": [0.5, 0.5, 0.5]}}))
    with pytest.raises(ValueError, match=r"vision\.mean: expected .*, found \[0.5, 0.5, 0.5\] \(processor_config.json"):
        start(tmp_path, "2B")
    assert start(tmp_path, "2B", accept=("vision.mean",)).loading_report.notes == (
        "vision.mean is (0.485, 0.456, 0.406), and the backbone was trained with [0.5, 0.5, 0.5]",
    )
    old.unlink()
    new.write_text(json.dumps({"image_processor": values}))
    assert start(tmp_path, "2B").loading_report.notes == ()
    new.write_text(json.dumps({"image_seq_length": 256}))  # as older versions wrote it
    assert start(tmp_path, "2B").loading_report.notes == (
        "the backbone comes without preprocessor_config.json: its pixels' mean and deviation could not be compared",
    )
