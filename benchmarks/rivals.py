"""The parts of a call that `transformers` can express, computed by its own modules over the same weights."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel, Qwen3VLVisionModel

from moteur.data import as_unit_floats
from moteur.recipes import Inputs, InternVLAA1, Qwen3VLVision
from moteur.recipes.backbones.internvl3 import InternVL3
from moteur.recipes.backbones.stream import Stream
from moteur.recipes.checkpoints.fresh import WeightlessMode
from moteur.recipes.checkpoints.keymap import separate

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
        key_rows = config.kv_heads * config.head_dim
        for name, value in model.mot.expert("und").state_dict().items():
            parts = separate(f"mot.{name}")
            rows = {1: [len(value)], 2: [len(value) // 2] * 2, 3: [len(value) - 2 * key_rows, key_rows, key_rows]}
            for part, rest in zip(parts, value.split(rows[len(parts)]), strict=True):
                weights[_their_name(part.removeprefix("mot."))] = rest.to(model.dtype)
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


def _their_name(name: str) -> str:
    prefix, _, own = name.rpartition(".")
    layer, _, part = prefix.partition(".")[2].partition(".")
    return f"layers.{layer}.{_NAMES[part]}.{own}" if part else name


@torch.no_grad()
def prefill(model: InternVLAA1, stream: Stream, count: int) -> Tensor:
    """The same keys by a model of ours, those of a session included: (layer, batch, kv_heads, seq, head_dim)."""
    tokens = stream.tokens[:, :count]
    valid = Stream(tokens, None, stream.positions[:, :, :count], stream.following)
    cache = model.mot.new_cache(batch=len(tokens), capacity=count, device=tokens.device, dtype=tokens.dtype)
    attention = partial(scaled_dot_product_attention, enable_gqa=True)
    model.mot({"und": tokens}, attention=attention, rotary=model.rotary(valid), cache=cache, outputs=())
    return cache.keys


class Tower:
    """Image tokens of the present by the vision tower of `transformers`; InternViT is theirs in our model too."""

    def __init__(self, model: InternVLAA1) -> None:
        self.model, self.module = model, None
        vision = model.config.vision
        if isinstance(vision, Qwen3VLVision):
            self.module = _their_tower(model, vision)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        """Tokens of all views, one after another."""
        if self.module is None:
            return image_tokens(self.model, inputs)
        grid = self.model.backbone.side // self.model.config.vision.patch
        frames = as_unit_floats(inputs.frames[:, :, -1])
        patches = self.model.backbone.patchify(frames).to(self.model.dtype).flatten(0, 2)
        views = self.model.config.views * len(inputs.state)
        output = self.module(patches, grid_thw=torch.tensor([[1, grid, grid]] * views, device=patches.device))
        tokens = output[0] if isinstance(output, tuple) else output.pooler_output
        return tokens.unflatten(0, (len(inputs.state), -1))


@torch.no_grad()
def image_tokens(model: InternVLAA1, inputs: Inputs) -> Tensor:
    """Image tokens of the present by a model of ours, those of a session included: (batch, view x token, dim)."""
    tokens = model.backbone(as_unit_floats(inputs.frames[:, :, -1]))
    if isinstance(model.backbone, InternVL3):
        return tokens.flatten(1, 2)
    return tokens[:, :, 1:-1].flatten(1, 2)  # without the marks before and after a view


def _their_tower(model: InternVLAA1, vision: Qwen3VLVision) -> nn.Module:
    sizes = Qwen3VLVisionModel.config_class(
        depth=vision.depth,
        hidden_size=vision.dim,
        hidden_act="gelu_pytorch_tanh",
        intermediate_size=vision.mlp_dim,
        num_heads=vision.heads,
        in_channels=3,
        patch_size=vision.patch,
        spatial_merge_size=vision.merge,
        temporal_patch_size=vision.patch_frames,
        out_hidden_size=model.config.und.dim,
        num_position_embeddings=vision.positions,
        deepstack_visual_indexes=[],
    )
    with WeightlessMode():
        tower = Qwen3VLVisionModel(sizes).eval().requires_grad_(requires_grad=False)
    tower.load_state_dict(model.backbone.vision.state_dict(), strict=True, assign=True)
    return tower.to(model.backbone.text_embedding.weight.device)
