"""The released layout: loaded completely, written back byte for byte, contradictions refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_checkpoints import FIRST_NAME, SECOND_NAME, STATISTICS, UND, released_tensors, states_equal, write_tensors
from toy_model import random_inputs

from moteur.recipes import InternVLAA1, InternVLAA1Config, preset
from moteur.recipes.checkpoints.export import export_released
from moteur.recipes.checkpoints.keymap import released_keys
from moteur.recipes.config import ExpertSize, TokenIds, Variant
from moteur.tokenizers import save_weights

Write = Callable[..., Path]


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_loaded_or_listed_and_an_untrained_round_trip_gives_back_every_byte(
    shards: int, any_model: InternVLAA1, released: Write, tmp_path: Path
) -> None:
    original = released(any_model, shards=shards)
    loaded = InternVLAA1.from_pretrained(original, config=any_model.config, decoder=True)
    assert states_equal(loaded, any_model)
    report = loaded.loading_report
    stored = released_tensors(any_model)
    assert {*report.loaded, *report.tied, *(name for name, _ in report.unused)} == set(stored)
    assert report.exact
    assert loaded.statistics == STATISTICS
    kept = export_released(loaded, tmp_path / "export", original=original)
    assert set(kept) == {name for name, _ in report.unused} != set()
    files = sorted(path.name for path in original.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "export").iterdir())
    assert all((original / name).read_bytes() == (tmp_path / "export" / name).read_bytes() for name in files)


def test_the_round_trip_is_exact_without_the_decoder_and_in_half_precision(
    model: InternVLAA1, released: Write, tmp_path: Path
) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in released_tensors(model).items()}
    original = released(model, tensors=halved, dtype="bfloat16")
    loaded = InternVLAA1.from_pretrained(original, config=model.config)
    assert loaded.foresight.decoder is None
    assert loaded.dtype == torch.bfloat16
    wide = {name for name, tensor in loaded.state_dict().items() if tensor.dtype == torch.float32}
    assert wide == {
        name
        for name in loaded.state_dict()
        if "attention_norm" in name or "mlp_norm" in name or ".und.norm." in name or "action.action_out." in name
    }
    keys = released_keys(model.config)
    assert all(
        torch.equal(tensor, torch.cat([halved[key] for key in keys.sources(name)]).to(tensor.dtype))
        for name, tensor in loaded.state_dict().items()
    )
    export_released(loaded, tmp_path / "export", original=original)
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()


def test_a_trained_model_is_exported_with_its_own_weights_and_the_originals_unused_ones(
    model: InternVLAA1, released: Write, tmp_path: Path
) -> None:
    original = released(model)
    loaded = InternVLAA1.from_pretrained(original, config=replace(model.config, steps=7))
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.mul_(1.5)
    loaded.statistics = {"arm": {"observation.state": {"mean": [0.0]}}}
    export_released(loaded, tmp_path / "export", original=original)
    again = InternVLAA1.from_pretrained(tmp_path / "export", config=loaded.config)
    assert states_equal(again, loaded)
    assert again.statistics == loaded.statistics
    assert json.loads((tmp_path / "export" / "config.json").read_text())["num_inference_steps"] == 7
    before, after = load_file(original / "model.safetensors"), load_file(tmp_path / "export" / "model.safetensors")
    unused = [name for name in before if "deepstack" in name or "_dec_model" in name]
    assert all(torch.equal(before[name], after[name]) for name in unused)


def test_the_tied_embedding_may_have_either_name_or_both(model: InternVLAA1, released: Write, tmp_path: Path) -> None:
    tensors = released_tensors(model)
    embedding = tensors.pop(FIRST_NAME)
    for index, names in enumerate(([FIRST_NAME], [SECOND_NAME], [FIRST_NAME, SECOND_NAME])):
        stored = {**tensors, **{name: embedding.clone() for name in names}}
        folder = released(model, tensors=stored, name=f"tied{index}")
        loaded = InternVLAA1.from_pretrained(folder, config=model.config)
        assert torch.equal(loaded.backbone.text_embedding.weight, embedding)
        assert loaded.loading_report.tied == tuple(names[1:])
        with torch.no_grad():
            loaded.backbone.text_embedding.weight.zero_()
        export_released(loaded, tmp_path / f"export{index}", original=folder, robots=["aloha"])
        written = load_file(tmp_path / f"export{index}" / "model.safetensors")
        assert all(not written[name].any() for name in names)
    stored[SECOND_NAME] = embedding + 1
    folder = released(model, tensors=stored, name="torn")
    with pytest.raises(
        ValueError, match=r"lm_head.weight and .*embed_tokens.weight are one tensor, and the file holds"
    ):
        InternVLAA1.from_pretrained(folder, config=model.config)


def test_cosmos_may_be_absent_and_then_comes_from_where_one_says(
    any_model: InternVLAA1, released: Write, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in released_tensors(any_model).items() if "c_model." not in name}
    folder = released(any_model, tensors=tensors)
    with pytest.raises(
        ValueError, match=r"(?s)missing \(\d+\): model.cosmos.*perhaps: the file comes without the Cosmos"
    ):
        InternVLAA1.from_pretrained(folder, config=any_model.config)
    save_weights(
        tmp_path / "cosmos.safetensors", encoder=any_model.foresight.encoder, decoder=any_model.foresight.decoder
    )
    loaded = InternVLAA1.from_pretrained(
        folder, config=any_model.config, decoder=True, cosmos=tmp_path / "cosmos.safetensors"
    )
    assert states_equal(loaded, any_model)
    elsewhere = {name for name, _ in loaded.loading_report.elsewhere}
    assert elsewhere == {
        name for name in any_model.state_dict() if name.startswith(("foresight.encoder.", "foresight.decoder."))
    }
    assert f"from {tmp_path / 'cosmos.safetensors'}" in str(loaded.loading_report)
    export_released(loaded, tmp_path / "export", original=folder)
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def recorded_config(dims: dict, variant: Variant) -> InternVLAA1Config:
    text, expert, vision, released = dims["text"], dims["expert"], dims["vision"], preset(variant)
    size = ExpertSize(dim=expert["hidden_size"], mlp_dim=expert["intermediate_size"])
    tower = {"dim": vision["hidden_size"], "mlp_dim": vision["intermediate_size"]}
    if variant == "3B":
        tower |= {"depth": vision["depth"], "heads": vision["num_heads"], "positions": 64, "deepstack": (0, 1)}
        special = TokenIds(image=500, vision_start=502, vision_end=503, pad=499)
    else:
        tower |= {"depth": vision["num_hidden_layers"], "heads": vision["num_attention_heads"], "size": 56}
        special = TokenIds(image=500, vision_start=None, vision_end=None, pad=499)
    return replace(
        released,
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        und=ExpertSize(dim=text["hidden_size"], mlp_dim=text["intermediate_size"]),
        gen=size,
        act=size,
        rope_sections=tuple(text["mrope_section"]) if variant == "3B" else None,
        vocabulary=text["vocab_size"],
        token_ids=special,
        vision=replace(released.vision, **tower),
        cosmos=replace(released.cosmos, channels=32, multipliers=(1, 1, 1), residual_blocks=1),
        state_dim=dims["max_state_dim"],
        action_dim=dims["max_action_dim"],
    )


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_the_recorded_file_of_the_reference_loads_completely(variant: Variant, golden: Path, tmp_path: Path) -> None:
    recorded = golden / f"internvla_a1_{variant.lower()}"
    tensors = load_file(recorded / "model.safetensors")
    config = recorded_config(json.loads((recorded / "dims.json").read_text()), variant)
    kind = {"type": "qwena1"} if variant == "3B" else {}
    (tmp_path / "config.json").write_text(json.dumps({**kind, "dtype": "float32"}))
    write_tensors(tmp_path, tensors)
    loaded = InternVLAA1.from_pretrained(tmp_path, config=config, decoder=True)
    keys = released_keys(config)
    stored = {name: torch.cat([tensors.pop(key) for key in keys.sources(name)]) for name in loaded.state_dict()}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.state_dict().items())
    assert {name for name, _ in loaded.loading_report.unused} == set(tensors) != set()
    with pytest.raises(
        ValueError, match="perhaps: these are not the released sizes, give the model's own with config="
    ):
        InternVLAA1.from_pretrained(tmp_path)


def test_outputs_after_loading_are_those_of_the_model(model: InternVLAA1, released: Write) -> None:
    loaded = InternVLAA1.from_pretrained(released(model), config=model.config)
    inputs = random_inputs(model.config, 2, seed=0)
    assert torch.equal(*(policy.act(inputs, generator=torch.Generator().manual_seed(1)) for policy in (model, loaded)))


def test_a_file_of_mixed_formats_needs_a_decision(model: InternVLAA1, released: Write) -> None:
    tensors = released_tensors(model)
    tensors[FIRST_NAME] = tensors[FIRST_NAME].bfloat16()
    folder = released(model, tensors=tensors)
    with pytest.raises(ValueError, match=r"dtype: the file mixes \['torch.bfloat16', 'torch.float32'\], choose one"):
        InternVLAA1.from_pretrained(folder, config=model.config)
    loaded = InternVLAA1.from_pretrained(folder, config=model.config, dtype=torch.float64)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float64}
    released_formats = InternVLAA1.from_pretrained(folder, config=model.config, dtype="released")
    assert released_formats.action.action_out.weight.dtype == torch.float32
    assert released_formats.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        (["model.visual.a", "model.language_model.b"], "a Qwen3-VL backbone: start from it with from_backbone"),
        (["vision_tower.a", "multi_modal_projector.b"], "an InternVL backbone: start from it with from_backbone"),
        (["vision_model.encoder.a", "mlp1.0.weight"], "in its authors' own layout: from_backbone takes the -hf"),
        (["encoder.conv_in.weight", "decoder.conv_out.weight"], "the Cosmos tokenizer alone"),
        (["base_model.model.x.lora_A.weight"], "a LoRA adapter: merge it into its base model first"),
        (["_orig_mod.backbone.a"], "a compiled model's state dict"),
        (["module.backbone.a"], "the state dict of a DistributedDataParallel wrapper"),
        (["model.paligemma_with_expert.a"], "source: expected an InternVLA-A1, got a π0 or π0.5 in"),
        (["vlm.model.a", "dit.layers.b"], "π0 in the layout of transformers"),
        (["mot.experts.und.norm.weight"], "our own layout, saved by save_pretrained"),
        (["value_head.weight"], "its names are not those of any file known here"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_a_guess_what_it_is(
    names: list[str], guess: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"type": "something"}')
    write_tensors(tmp_path, {name: torch.zeros(1) for name in names})
    with pytest.raises(ValueError, match=guess):
        InternVLAA1.from_pretrained(tmp_path)


def test_the_other_variant_is_recognised_by_its_names(models: dict, released: Write) -> None:
    folder = released(models["2B"])
    with pytest.raises(ValueError, match=r"config: expected the 2B variant, whose tensors .*released holds, got 3B"):
        InternVLAA1.from_pretrained(folder, config=models["3B"].config)


def test_an_export_needs_another_folder_and_a_fitting_original(models: dict, released: Write, tmp_path: Path) -> None:
    original = released(models["3B"])
    with pytest.raises(ValueError, match="folder: expected another one than the original"):
        export_released(models["3B"], original, original=original)
    with pytest.raises(ValueError, match="original: expected a released 2B layout, got 3B"):
        export_released(models["2B"], tmp_path / "export", original=original)
    larger = InternVLAA1(replace(models["3B"].config, action_dim=9))
    with pytest.raises(
        ValueError, match=r"another shape for .*action_in_proj.weight \(the model has \(28, 9\), the orig"
    ):
        export_released(larger, tmp_path / "export", original=original)
    tensors = released_tensors(models["3B"])
    del tensors["model.state_proj.bias"], tensors[f"{UND['3B']}model.visual.pos_embed.weight"]
    short = released(models["3B"], tensors=tensors, name="short")
    with pytest.raises(ValueError, match=r"has no place for \[.*model.state_proj.bias'\]"):
        export_released(models["3B"], tmp_path / "export", original=short)
    assert not (tmp_path / "export").exists()


def test_trained_weights_are_not_exported_with_the_statistics_of_another_robot(
    model: InternVLAA1, released: Write, tmp_path: Path
) -> None:
    original, target = released(model), tmp_path / "export"
    loaded = InternVLAA1.from_pretrained(original, config=model.config)
    export_released(loaded, target, original=original)  # nothing was trained
    with torch.no_grad():
        loaded.action.action_out.bias[0] += 1
    with pytest.raises(
        ValueError, match=r"^robots: the weights are not the original's, but .* are, of \['aloha'\]; set "
    ):
        export_released(loaded, target, original=original)
    assert (target / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"^robots: expected some of model.statistics, \['aloha'\], got \['arm'\]"):
        export_released(loaded, target, original=original, robots=["arm"])
    export_released(loaded, target, original=original, robots=["aloha"])
    assert json.loads((target / "stats.json").read_text()) == STATISTICS
    loaded.statistics = {**STATISTICS, "arm": STATISTICS["aloha"]}
    export_released(loaded, target, original=original)
    assert json.loads((target / "stats.json").read_text()).keys() == {"aloha", "arm"}
    export_released(loaded, target, original=original, robots=["arm"])
    assert json.loads((target / "stats.json").read_text()).keys() == {"arm"}
