"""One expert alone is a plain transformer: the text models of `transformers`, weight for weight."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy_backbones import BEFORE_5, rope
from transformers import GemmaConfig, GemmaModel, PreTrainedModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from moteur.mot import Expert, MoT, rotary_angles
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
RENAMED = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn": "attention",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "q_norm": "query_norm",
    "k_norm": "key_norm",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a Qwen or Gemma text model under the names that an expert called `text` has."""
    words = {key: [RENAMED.get(word, word) for word in key.split(".")] for key in state}
    return {"experts.text." + ".".join(words[key]): x for key, x in state.items() if not key.startswith("embed_tokens")}


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
    mot.load_state_dict(renamed(theirs.state_dict()), strict=True)

    x = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).to(device)
    causal = torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    rotary = rotary_angles(torch.arange(9, device=device)[None], head_dim=mot.head_dim, base=base)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
        actual = mot({"text": x}, attention=make_attention(causal), rotary=rotary)["text"]
    # Hidden states are of order 1 after the final norm; float32 rounds at 6e-8 and three layers add some tens of those.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
    assert expected.abs().max() > 1
