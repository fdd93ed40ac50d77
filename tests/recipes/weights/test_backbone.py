"""Starting from a backbone: its tensors where they belong, its constants compared, everything else from a seed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from toy_checkpoints import states_equal
from toy_model import random_inputs, toy_config, toy_config_2b

from moteur.mot import Expert
from moteur.recipes import InternVLAA1, InternVLAA1Config
from moteur.recipes.config import Variant
from moteur.tokenizers import CosmosEncoder, load_weights, save_weights

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


def qwen3_vl() -> transformers.PreTrainedModel:
    config = CONFIGS["3B"]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            text_config={
                **text_config(config),
                "head_dim": config.head_dim,
                "tie_word_embeddings": True,
                "rope_parameters": rope,
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
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Backbones as transformers saves them, and a tokenizer."""
    torch.manual_seed(0)
    found = {name: tmp_path_factory.mktemp(name) for name in ("3B", "2B", "sharded", "cosmos")}
    qwen = qwen3_vl()
    qwen.save_pretrained(found["3B"])
    qwen.save_pretrained(found["sharded"], max_shard_size="20KB")
    internvl().save_pretrained(found["2B"])
    sizes = CONFIGS["3B"].cosmos
    encoder = CosmosEncoder(
        channels=sizes.channels,
        multipliers=sizes.multipliers,
        residual_blocks=sizes.residual_blocks,
        z_channels=sizes.z_channels,
        latent_channels=sizes.latent_channels,
    )
    save_weights(found["cosmos"] / "cosmos.safetensors", encoder=encoder)
    return found


@pytest.fixture
def start(folders: dict[str, Path]) -> Callable[..., InternVLAA1]:
    def load(source: str | Path = "3B", variant: Variant = "3B", **options: object) -> InternVLAA1:
        given = {"config": CONFIGS[variant], "seed": 0, "cosmos": folders["cosmos"], **options}
        return InternVLAA1.from_backbone(folders.get(str(source), Path(source)), **given)

    return load


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_every_tensor_of_the_backbone_is_where_its_own_model_has_it(
    variant: Variant, start: Callable[..., InternVLAA1], folders: dict[str, Path]
) -> None:
    model = start(variant, variant)
    kind = {
        "3B": transformers.Qwen3VLForConditionalGeneration,
        "2B": transformers.InternVLForConditionalGeneration,
    }[variant]
    backbone = kind.from_pretrained(folders[variant]).model.eval()
    tower = backbone.visual if variant == "3B" else backbone.vision_tower
    theirs = {name: tensor for name, tensor in tower.state_dict().items() if "deepstack" not in name}
    ours = model.backbone.vision.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    inputs = random_inputs(CONFIGS[variant], 2, seed=1)
    text = backbone.language_model
    assert torch.equal(model.backbone.text_embedding.weight, text.embed_tokens.weight)
    stream = model.backbone(inputs)
    hidden = model.mot(
        {"und": stream.tokens},
        attention=lambda query, key, value: torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        ),
        rotary=model.rotary(stream),
    )["und"]
    positions = stream.positions if variant == "3B" else stream.positions[0]
    expected = text(inputs_embeds=stream.tokens, position_ids=positions).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)  # float32, two layers


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_the_whole_model_runs_and_its_report_accounts_for_every_tensor(
    variant: Variant, start: Callable[..., InternVLAA1], folders: dict[str, Path]
) -> None:
    model = start(variant, variant)
    report = model.loading_report
    assert report.exact
    names = set(model.state_dict())
    elsewhere, fresh = {name for name, _ in report.elsewhere}, set(report.fresh)
    assert elsewhere == {name for name in names if name.startswith("foresight.encoder.")}
    assert fresh == {name for name in names - elsewhere if not name.startswith(("backbone.", "mot.experts.und."))}
    assert len(report.loaded) == len(names) - len(elsewhere) - len(fresh)
    stored = load_file(folders[variant] / "model.safetensors")
    assert len(report.loaded) + len(report.unused) + len(report.tied) == len(stored)
    inputs = random_inputs(CONFIGS[variant], 1, seed=2)
    assert torch.isfinite(model.act(inputs, generator=torch.Generator().manual_seed(0))).all()
    encoder = CosmosEncoder(channels=32, multipliers=(1, 1, 1), residual_blocks=1, z_channels=4, latent_channels=4)
    load_weights(encoder, folders["cosmos"])
    assert all(
        torch.equal(tensor, model.foresight.encoder.state_dict()[name]) for name, tensor in encoder.state_dict().items()
    )


def test_shards_give_the_same_model(start: Callable[..., InternVLAA1], folders: dict[str, Path]) -> None:
    assert len(list(folders["sharded"].glob("*.safetensors"))) > 1
    assert states_equal(start("sharded"), start("3B"))


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(
    start: Callable[..., InternVLAA1],
) -> None:
    before = torch.get_rng_state()
    first = start(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert states_equal(first, start(seed=3))
    other = start(seed=4)
    drawn = [
        name for name, tensor in first.state_dict().items() if name in first.loading_report.fresh and tensor.std() > 0
    ]
    assert len(drawn) > 20
    assert not any(torch.equal(first.state_dict()[name], other.state_dict()[name]) for name in drawn)
    kept = [name for name in first.state_dict() if name not in first.loading_report.fresh]
    assert all(torch.equal(first.state_dict()[name], other.state_dict()[name]) for name in kept)


def test_a_fresh_part_is_what_its_constructor_draws_and_does_not_depend_on_the_others(
    start: Callable[..., InternVLAA1],
) -> None:
    model, alone = start(seed=1), start(seed=1, config=CONFIGS["3B"].without_foresight(), cosmos=None)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in alone.state_dict().items())
    constructed = Expert(dim=CONFIGS["3B"].gen.dim, mlp_dim=28, depth=2, heads=4, kv_heads=2, head_dim=8, qk_norm=True)
    for name, tensor in model.mot.experts["gen"].state_dict().items():
        spread = constructed.state_dict()[name].std()
        assert abs(tensor.std() - spread) < 0.2 * spread + 1e-9, name  # hundreds of draws each
    assert model.action.action_in.weight.abs().max() <= 5**-0.5  # uniform within 1 / sqrt(fan-in)


def test_half_precision_holds_for_every_part(start: Callable[..., InternVLAA1]) -> None:
    model = start(dtype="released", decoder=False)
    kept = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    assert all("norm." in name or name.startswith("action.action_out.") for name in kept)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16, torch.float32}
    assert {tensor.dtype for tensor in start(dtype=torch.float64).state_dict().values()} == {torch.float64}


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        (
            "3B",
            {"rope_base": 5e5},
            r"rope_base: expected 500000.0, found 5000000.0 \(text_config.rope_parameters.rope_theta",
        ),
        ("3B", {"norm_eps": 1e-5}, r"norm_eps: expected 1e-05, found 1e-06 \(text_config.rms_norm_eps\)"),
        ("3B", {"rope_sections": (1, 2, 1)}, r"rope_sections: expected \(1, 2, 1\), found \[2, 1, 1\]"),
        ("3B", {"depth": 3}, r"depth: expected 3, found 2 \(text_config.num_hidden_layers\)"),
        ("3B", {"qk_norm": False, "qkv_bias": True}, "(?s)qkv_bias: expected True, found False.*qk_norm: expected"),
        ("3B", {"vocabulary": 200}, r"vocabulary: expected 200, found 128 \(text_config.vocab_size\)"),
        ("2B", {"rope_base": 1e4}, r"rope_base: expected 10000.0, found 1000000.0"),
        (
            "2B",
            {"text_scaling": True},
            "text_scaling: expected True, found 0.0|text_scaling: expected True, found False",
        ),
        (
            "2B",
            {"heads": 4, "kv_heads": 2, "head_dim": 6},
            "(?s)heads: expected 4, found 3.*kv_heads: expected 2, found 1",
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
    rope = values["text_config"].pop("rope_parameters")
    values["text_config"] |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
    }
    values["vision_config"].pop("rope_parameters", None)
    copy(folders["3B"], tmp_path, values)
    assert states_equal(start(tmp_path), start("3B"))
    del values["text_config"]["rope_theta"]
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match=r"rope_base: expected 5000000\.0, found 'nothing'"):
        start(tmp_path)
    values["text_config"] |= {"rope_theta": 5e6, "rope_scaling": {**rope, "rope_type": "yarn"}}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match="rope_kind: expected 'default', found 'yarn'"):
        start(tmp_path)
    rope.pop("rope_type")
    values["text_config"]["rope_scaling"] = {**rope, "type": "linear"}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match="rope_kind: expected 'default', found 'linear'"):
        start(tmp_path)
    values["text_config"]["rope_scaling"] = {**rope, "type": {}}
    copy(folders["3B"], tmp_path, values)
    with pytest.raises(ValueError, match=r"rope_kind: expected 'default', found \{\}"):
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
    with pytest.raises(ValueError, match="model_type: expected 'qwen3_vl', found 'internvl'"):
        start("2B", "3B")


def test_the_tokenizer_must_be_named_and_the_backbone_must_be_there(start: Callable[..., InternVLAA1]) -> None:
    with pytest.raises(ValueError, match="cosmos: a backbone comes without the Cosmos tokenizer, expected where it is"):
        start(cosmos=None)
    with pytest.raises(ValueError, match="source: expected a folder or a Hub id owner/name, got nowhere"):
        InternVLAA1.from_backbone("nowhere", config=CONFIGS["3B"], seed=0, cosmos=None)


def test_a_backbone_loaded_as_a_whole_model_is_recognised(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="a Qwen3-VL backbone: start from it with from_backbone"):
        InternVLAA1.from_pretrained(folders["3B"])


def copy(source: Path, target: Path, values: dict) -> None:
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (target / "config.json").write_text(json.dumps(values))
