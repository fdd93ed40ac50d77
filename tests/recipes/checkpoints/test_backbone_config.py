"""A backbone's files against our configuration: every difference refused by name, or accepted by name."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_backbones import BEFORE_5, CONFIGS
from toy_checkpoints import states_equal

from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints.backbone import check_backbone
from moteur.recipes.config import Variant

# Fields that no output depends on: bookkeeping, spreads of initial weights, limits that nothing enforces, written text.
HARMLESS = {
    "architectures",
    "dtype",
    "transformers_version",
    "image_seq_length",
    "video_token_id",
    "tie_word_embeddings",  # read, and compared with the tensors
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
PARTS = {"vision_config.model_type", "3B text_config.model_type"}  # the whole one's is compared, and 2B's text model


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 states rotary settings in the older way, which is tested below")
@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_every_field_that_a_backbone_states_is_compared_or_known_to_decide_nothing(
    variant: Variant, folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        link(folders[variant], tmp_path)
        original = (folders[variant] / file).read_text()
        (tmp_path / file).unlink()
        compared = 0
        for path, value in leaves(json.loads(original)):
            field = ".".join(path)
            known = path[-1] in HARMLESS or field in PARTS or f"{variant} {field}" in PARTS
            (tmp_path / file).write_text(json.dumps(with_other(json.loads(original), path, value)))
            try:
                check_backbone(tmp_path, CONFIGS[variant])
            except ValueError as error:
                assert f", got {other(value)!r} ({file}: {field})" in str(error)  # noqa: PT017  # or it is harmless
                assert not known, field
                compared += 1
            else:
                assert known, field
        assert compared >= {"config.json": 30, "preprocessor_config.json": 5}[file]
        clear(tmp_path)


def leaves(values: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in values.items():
        yield from leaves(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [other(value[0]), *value[1:]]
    return f"{value}x" if isinstance(value, str | None) else value * 2 + 3


def with_other(values: dict, path: tuple[str, ...], value: object) -> dict:
    section = values
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = other(value)
    return values


def link(source: Path, target: Path) -> None:
    for path in source.iterdir():
        (target / path.name).symlink_to(path)


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        (
            "3B",
            {"rope_base": 5e5},
            r"rope_base: expected 500000.0, got 5000000.0 \(config.json: text_config.rope_parameters.rope_theta",
        ),
        ("3B", {"norm_eps": 1e-5}, r"norm_eps: expected 1e-05, got 1e-06 \(config.json: text_config.rms_norm_eps\)"),
        ("3B", {"rope_sections": (1, 2, 1)}, r"rope_sections: expected \(1, 2, 1\), got \[2, 1, 1\]"),
        ("3B", {"depth": 3}, r"depth: expected 3, got 2 \(config.json: text_config.num_hidden_layers\)"),
        ("3B", {"qk_norm": False, "qkv_bias": True}, "(?s)qkv_bias: expected True, got False.*qk_norm: expected"),
        ("3B", {"vocabulary": 200}, r"vocabulary: expected 200, got 128 \(config.json: text_config.vocab_size\)"),
        ("2B", {"rope_base": 1e4}, r"rope_base: expected 10000.0, got 1000000.0"),
        (
            "2B",
            {"text_scaling": True},
            "text_scaling: expected True, got False",
        ),
        (
            "2B",
            {"heads": 4, "kv_heads": 2, "head_dim": 6},
            "(?s)heads: expected 4, got 3.*kv_heads: expected 2, got 1",
        ),
    ],
)
def test_every_constant_that_differs_is_named_with_both_values(
    variant: Variant, change: dict, message: str, start: Callable[..., InternVLAA1]
) -> None:
    with pytest.raises(ValueError, match=message):
        start(variant, variant, config=replace(CONFIGS[variant], **change))


def test_a_difference_that_is_meant_is_accepted_by_name_and_noted(start: Callable[..., InternVLAA1]) -> None:
    released = replace(CONFIGS["2B"], rope_base=1e4, text_scaling=True)
    model = start("2B", "2B", config=released, accept=("rope_base", "text_scaling"))
    assert model.loading_report.notes == (
        "rope_base is 10000.0, and the backbone was trained with 1000000.0",
        "text_scaling is True, and the backbone was trained with False",
    )
    with pytest.raises(ValueError, match=r"accept: expected some of \[.*'rope_base'.*\], got \['rope'\]"):
        start("2B", "2B", accept=("rope",))


def test_the_older_way_of_stating_rotary_settings_is_read(
    start: Callable[..., InternVLAA1], folders: dict[str, Path], tmp_path: Path
) -> None:
    values = json.loads((folders["3B"] / "config.json").read_text())
    text = values["text_config"]
    rope = text.pop("rope_parameters", None) or {**text["rope_scaling"], "rope_theta": text["rope_theta"]}
    text |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
    }
    values["vision_config"].pop("rope_parameters", None)
    copy(folders["3B"], tmp_path, values)
    assert states_equal(start(tmp_path), start("3B"))
    del values["text_config"]["rope_theta"]
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match=r"rope_base: expected 5000000\.0, got 'nothing'"):
        start(tmp_path)
    values["text_config"] |= {"rope_theta": 5e6, "rope_scaling": {**rope, "rope_type": "yarn"}}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match="rope_kind: expected 'default', got 'yarn'"):
        start(tmp_path)
    rope.pop("rope_type")
    values["text_config"]["rope_scaling"] = {**rope, "type": "linear"}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match="rope_kind: expected 'default', got 'linear'"):
        start(tmp_path)
    values["text_config"]["rope_scaling"] = {**rope, "type": {}}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match=r"rope_kind: expected 'default', got \{\}"):
        start(tmp_path)
    values["text_config"]["rope_scaling"] = {**rope, "type": "dynamic"}  # as InternVL3's: only beyond its own context
    copy(folders["3B"], tmp_path, values)
    assert states_equal(start(tmp_path), start("3B"))


def test_a_backbone_that_lacks_a_tensor_has_one_more_or_is_another_is_refused(
    start: Callable[..., InternVLAA1], folders: dict[str, Path], tmp_path: Path
) -> None:
    values = json.loads((folders["3B"] / "config.json").read_text())
    copy(folders["3B"], tmp_path, values)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.language_model.norm.weight"]
    save_file({**tensors, "model.visual.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"(?s)missing \(1\): model.language_model.norm.weight.*unexpected \(1\): model.vis"
    ):
        start(tmp_path)
    with pytest.raises(ValueError, match="model_type: expected 'qwen3_vl', got 'internvl'"):
        start("2B", "3B")


def test_the_tokenizer_must_be_named_and_the_backbone_must_be_there(start: Callable[..., InternVLAA1]) -> None:
    with pytest.raises(
        ValueError, match="cosmos: expected where the Cosmos tokenizer is, which no backbone brings, got None"
    ):
        start(cosmos=None)
    with pytest.raises(
        ValueError, match="source: expected a folder or a Hub id owner/name, got 'nowhere'; there is no such folder"
    ):
        InternVLAA1.from_backbone("nowhere", config=CONFIGS["3B"], seed=0, cosmos=None)


def test_a_decoder_is_refused_where_there_is_no_foresight_to_decode(
    start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    config = CONFIGS["3B"].without_foresight()
    start(config=config, cosmos=None).save_pretrained(tmp_path)
    message = "^decoder: expected False for a configuration without foresight .*, got True"
    for load in (
        lambda: start(config=config, cosmos=None, decoder=True),
        lambda: InternVLAA1.from_pretrained(tmp_path, decoder=True),
        lambda: InternVLAA1(config, decoder=True),
    ):
        with pytest.raises(ValueError, match=message):
            load()
    assert InternVLAA1.from_pretrained(tmp_path).foresight is None


def test_a_backbone_loaded_as_a_whole_model_is_recognised(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="a Qwen3-VL backbone: start from it with from_backbone"):
        InternVLAA1.from_pretrained(folders["3B"])


def copy(source: Path, target: Path, values: dict) -> None:
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (target / "config.json").write_text(json.dumps(values))


def test_two_names_of_one_tensor_are_refused(
    start: Callable[..., InternVLAA1], folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((folders["3B"] / "config.json").read_text())
    tensors = load_file(folders["3B"] / "model.safetensors")
    name = next(name for name in tensors if name.startswith("model.visual."))
    save_file(tensors | {name.removeprefix("model."): tensors[name].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="are two names of one tensor; keep one"):
        start(tmp_path)


def test_pixels_are_compared_in_the_file_of_newer_versions_too_and_their_absence_is_noted(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    link(folders["2B"], tmp_path)
    assert start(tmp_path, "2B").loading_report.notes == ()
    old, new = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    values = json.loads(old.read_text())
    new.write_text(json.dumps({"image_processor": values | {"image_mean": [0.5, 0.5, 0.5]}}))
    with pytest.raises(ValueError, match=r"vision\.mean: expected .*, got \[0.5, 0.5, 0.5\] \(processor_config.json"):
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
