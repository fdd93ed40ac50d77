"""The parts of a call that `transformers` can express, computed by its own modules over the same weights."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

from moteur.recipes import Inputs, InternVLAA1
from moteur.recipes.backbones import Stream
from moteur.recipes.checkpoints.fresh import WeightlessMode

_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


class TextPrefill:
    """`Qwen3VLTextModel` over the tokens of the understanding stream, without padding and without a causal mask.

    The weights are the model's own memory, but for norm gains that the released precision keeps in float32 beside
    bfloat16 maps: those are rounded, as this module knows one dtype only.
    """

    def __init__(self, model: InternVLAA1) -> None:
        config = model.config
        sizes = Qwen3VLTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.und.dim,
            intermediate_size=config.und.mlp_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            hidden_act="silu",
            attention_bias=config.qkv_bias,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_base,
                "mrope_section": list(config.rope_sections or ()),
                "mrope_interleaved": True,
            },
        )
        with WeightlessMode():
            self.module = Qwen3VLTextModel(sizes).eval().requires_grad_(requires_grad=False)
        weights = {"embed_tokens.weight": model.backbone.text_embedding.weight}
        for name, value in model.mot.expert("und").state_dict().items():
            prefix, _, own = name.rpartition(".")
            layer, _, part = prefix.partition(".")[2].partition(".")
            full = f"layers.{layer}.{_NAMES[part]}.{own}" if part else name
            weights[full] = value.to(model.dtype)
        self.module.load_state_dict(weights, strict=True, assign=True)
        self.module.to(model.backbone.text_embedding.weight.device)  # its rotary frequencies

    @torch.no_grad()
    def __call__(self, stream: Stream, count: int) -> list[Tensor]:
        """Keys of every layer, (batch, kv_heads, seq, head_dim), of the first `count` tokens."""
        tokens = stream.tokens[:, :count]
        everything = torch.ones(tokens.shape[0], 1, count, count, dtype=torch.bool, device=tokens.device)
        output = self.module(
            inputs_embeds=tokens,
            attention_mask=everything,
            position_ids=stream.positions[:, :, :count],
            use_cache=True,
        )
        cache = cast("Any", output.past_key_values)
        return [layer.keys for layer in cache.layers]


@torch.no_grad()
def tower(model: InternVLAA1, inputs: Inputs) -> Tensor:
    """Image tokens by the vision tower of `transformers`, views one after another."""
    images = model.backbone.images(inputs)
    return torch.cat(images, dim=1) if isinstance(images, list) else images
