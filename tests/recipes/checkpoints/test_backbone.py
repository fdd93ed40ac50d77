"""Starting from a backbone: its tensors where they belong, everything else from a seed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from toy_backbones import CONFIGS
from toy_checkpoints import states_equal
from toy_model import random_inputs, toy_config

from moteur.mot import Expert
from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints.fresh import build_weightless, initialise
from moteur.recipes.checkpoints.keymap import released_tensors
from moteur.recipes.config import Variant
from moteur.tokenizers import CosmosEncoder, load_weights


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
    stream = model.context(inputs, None)[0]["und"]
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
    read = released_tensors(
        {name: tensor for name, tensor in model.state_dict().items() if name not in elsewhere | fresh}, model.config
    )
    assert len(report.loaded) == len(read)
    stored = load_file(folders[variant] / "model.safetensors")
    assert len(report.loaded) + len(report.unused) + len(report.tied) == len(stored)
    inputs = random_inputs(CONFIGS[variant], 1, seed=2)
    assert torch.isfinite(model.act(inputs, generator=torch.Generator().manual_seed(0))).all()
    encoder = CosmosEncoder(CONFIGS["3B"].cosmos)
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


def test_what_is_drawn_has_memory_one_part_at_a_time() -> None:
    model = build_weightless(InternVLAA1, CONFIGS["3B"], decoder=False)
    names = [name for name in model.state_dict() if name.startswith(("mot.experts.gen.", "action."))]
    with_memory: list[set[str]] = []

    def hold(name: str, drawn: torch.Tensor) -> torch.Tensor:
        with_memory.append({other for other, parameter in model.named_parameters() if not parameter.is_meta})
        assert name in with_memory[-1]
        return drawn.bfloat16()

    kept = initialise(model, names, seed=0, hold=hold)
    assert set(kept) == set(names)
    assert all(tensor.dtype == torch.bfloat16 for tensor in kept.values())
    assert all(parameter.is_meta for parameter in model.parameters())
    gen = {name for name in names if name.startswith("mot.experts.gen.")}
    assert gen in with_memory
    assert all(part == gen or not part & gen for part in with_memory)


def test_parts_of_one_size_start_apart() -> None:
    config = toy_config()
    config = replace(config, gen=config.act)
    model = build_weightless(InternVLAA1, config, decoder=False)
    names = [name for name in model.state_dict() if name.startswith(("mot.experts.gen.", "mot.experts.act."))]
    drawn = initialise(model, names, seed=0, hold=lambda _, values: values.clone())
    for name, values in drawn.items():
        if name.startswith("mot.experts.gen.") and values.ndim > 1:
            assert not torch.equal(values, drawn[name.replace(".gen.", ".act.")]), name
