"""One expert alone is a plain transformer: the text models of `transformers`, weight for weight."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy_backbones import BEFORE_5, rope
from transformers import (
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    Qwen3NextConfig,
    Qwen3NextModel,
    SmolLM3Config,
    SmolLM3Model,
)

from moteur.mot import Expert, MoT, expert_state_dict, rotary_angles
from moteur.mot.mot import AttentionFn

SIZES = {
    "vocab_size": 11,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
OURS = {"dim": 48, "depth": 3, "heads": 4, "kv_heads": 2, "mlp_dim": 80, "eps": 1e-6}


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Give every weight, norm gains and biases included, a value that matters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        nn.init.zeros_(parameter) if parameter.ndim == 2 else None
        parameter.data += noise / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.3 * noise
    return model.eval()


@pytest.mark.parametrize(
    ("model", "config", "base", "ours"),
    [
        pytest.param(
            Qwen3Model,
            Qwen3Config(**SIZES, head_dim=16, **rope(5e6)),
            5e6,
            {"head_dim": 16, "qk_norm": True},
            id="Qwen3",
        ),
        pytest.param(
            Qwen2Model,
            Qwen2Config(**SIZES, **rope(1e4)),
            1e4,
            {"head_dim": 12, "qkv_bias": True},
            id="Qwen2",
        ),
        pytest.param(
            GemmaModel,
            GemmaConfig(
                **SIZES,
                head_dim=16,
                hidden_activation="gelu_pytorch_tanh",
                hidden_act="gelu_pytorch_tanh",
                **rope(1e4),
            ),
            1e4,
            {"head_dim": 16, "activation": "geglu_tanh", "norm": "rms_unit_offset"},
            marks=pytest.mark.skipif(BEFORE_5, reason="transformers 4 scales Gemma's embeddings inside this model"),
            id="Gemma",
        ),
        pytest.param(
            LlamaModel,
            LlamaConfig(**SIZES, **rope(5e5)),
            5e5,
            {"head_dim": 12},
            id="Llama",
        ),
    ],
)
def test_one_expert_gives_the_hidden_states_of_the_text_model(
    *,
    model: type[PreTrainedModel],
    config: GemmaConfig | Qwen2Config | Qwen3Config,
    base: float,
    ours: dict[str, object],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    theirs = shaken(model(config)).to(device)
    mot = MoT({"text": Expert(**OURS, **ours)}).to(device)
    assert not any(mot.expert("text").load_state_dict(expert_state_dict(theirs.state_dict(), prefix="")))

    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(device)
    causal = torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    rotary = rotary_angles(torch.arange(9, device=device)[None], head_dim=mot.head_dim, base=base)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, use_cache=False, output_hidden_states=True)
        actual = mot({"text": x}, attention=make_attention(causal), rotary=rotary)["text"]
        hidden = [*mot.walk({"text": x}, attention=make_attention(causal), rotary=rotary)]
    # Hidden states are of order 1 after the final norm; float32 rounds at 6e-8 and three layers add some tens of those.
    torch.testing.assert_close(actual, expected.last_hidden_state, rtol=0, atol=2e-5)
    assert expected.last_hidden_state.abs().max() > 1
    assert len(hidden) == 4  # theirs end with the final norm, ours without it
    for mine, their in zip(hidden[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine["text"], their, rtol=0, atol=2e-5 * float(their.abs().max()))


def test_layers_of_their_own_kind_are_those_of_smollm3(
    make_attention: Callable[[Tensor], AttentionFn], device: torch.device
) -> None:
    """In one layer of three nothing is rotated, and in another one a token sees its last four alone."""
    config = SmolLM3Config(
        **SIZES,
        no_rope_layers=[1, 0, 1],
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=4,
        pad_token_id=0,
        **rope(1e4),
    )
    theirs = shaken(SmolLM3Model(config)).to(device)
    mot = MoT({"text": Expert(**OURS, head_dim=12)}).to(device)
    mot.expert("text").load_state_dict(expert_state_dict(theirs.state_dict(), prefix=""))

    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(device)
    place = torch.arange(9, device=device)
    causal = place[None, :] <= place[:, None]
    near = causal & (place[:, None] - place[None, :] < 4)
    rotary = rotary_angles(place[None], head_dim=12, base=1e4)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        actual = mot(
            {"text": x},
            attention=[make_attention(mask) for mask in (causal, causal, near)],
            rotary=[rotary, None, rotary],
        )["text"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 has other settings for this model")
def test_an_output_gate_and_few_rotated_features_are_those_of_qwen3_next(
    make_attention: Callable[[Tensor], AttentionFn], device: torch.device
) -> None:
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=16,
        layer_types=["full_attention"] * 3,
        num_experts=0,
        **rope(1e4, partial_rotary_factor=0.25),
    )
    theirs = shaken(Qwen3NextModel(config)).to(device)
    ours = Expert(**OURS, head_dim=16, qk_norm=True, norm="rms_unit_offset", output_gate=True)
    mot = MoT({"text": ours}, rotated=4).to(device)
    state = theirs.state_dict()
    gates = {}
    for name in [name for name in state if name.endswith("q_proj.weight")]:  # of each head: its query, its gate
        query, gate = state[name].unflatten(0, (4, 2, 16)).unbind(1)
        state[name] = query.flatten(0, 1)
        gates[name.replace("self_attn.q_proj", "attention.gate")] = gate.flatten(0, 1)
    ours.load_state_dict(expert_state_dict(state, prefix="") | gates)

    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(device)
    causal = torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    rotary = rotary_angles(torch.arange(9, device=device)[None], head_dim=4, base=1e4)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        actual = mot({"text": x}, attention=make_attention(causal), rotary=rotary)["text"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", ""])
def test_names_are_strict_both_ways(prefix: str) -> None:
    expert = Expert(**OURS, head_dim=16, qk_norm=True)
    theirs = Qwen3Model(Qwen3Config(**SIZES, head_dim=16)).state_dict()
    stored = {prefix + name: x for name, x in theirs.items()}
    beside = {"lm_head.weight": torch.zeros(1), "visual.blocks.0.norm1.weight": torch.zeros(1)} if prefix else {}
    expert.load_state_dict(expert_state_dict(stored | beside, prefix=prefix))
    for name in stored:
        if "embed_tokens" not in name:
            with pytest.raises(RuntimeError, match="Missing key"):
                expert.load_state_dict(
                    expert_state_dict({other: x for other, x in stored.items() if other != name}, prefix=prefix)
                )
    for strange in (
        "layers.0.pre_feedforward_layernorm.weight",
        "layers.0.mlp.experts.0.up_proj.weight",
        "score.weight",
    ):
        with pytest.raises(ValueError, match=f"stored: expected names of .*prefix='{prefix}'.*{strange}"):
            expert_state_dict(stored | {prefix + strange: torch.zeros(1)}, prefix=prefix)


def test_a_prefix_or_suffix_under_which_nothing_stands_is_an_error() -> None:
    stored = Qwen3Model(Qwen3Config(**SIZES, head_dim=16)).state_dict()
    with pytest.raises(ValueError, match=r"prefix='model.', with suffix='', got \['embed_tokens.weight', "):
        expert_state_dict(stored, prefix="model.")
    with pytest.raises(ValueError, match="with suffix='_moe_gen', got"):
        expert_state_dict(stored, prefix="", suffix="_moe_gen")
