"""The names under which released InternVLA-A1 files store our tensors."""

import re
from collections.abc import Iterable, Mapping

_ROOT = "model.qwen3_vl_with_expert."
_LANGUAGE = f"{_ROOT}und_expert.model.language_model."

_PREFIXES = {
    "backbone.text_embedding.": f"{_ROOT}und_expert.lm_head.",
    "backbone.vision.": f"{_ROOT}und_expert.model.visual.",
    "mot.experts.und.": _LANGUAGE,
    "mot.experts.gen.": f"{_ROOT}gen_expert.",
    "mot.experts.act.": f"{_ROOT}act_expert.",
    "foresight.head.project_in.": "model.cosmos_in_proj.",
    "foresight.head.downsample.": "model.downsample_conv.",
    "foresight.head.upsample.": "model.upsample_conv.",
    "foresight.head.norm.": "model.cosmos_out_layer_norm.",
    "foresight.head.project_out.": "model.cosmos_out_proj.",
    "action.state_in.": "model.state_proj.",
    "action.action_in.": "model.action_in_proj.",
    "action.fusion_in.": "model.action_time_mlp_in.",
    "action.fusion_out.": "model.action_time_mlp_out.",
    "action.action_out.": "model.action_out_proj.",
    "foresight.encoder.": "model.cosmos._enc_model.",
    "foresight.decoder.": "model.cosmos._dec_model.",
}

_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

TIED = {f"{_LANGUAGE}embed_tokens.weight": f"{_ROOT}und_expert.lm_head.weight"}
"""A second name of a tensor, and the name we know it by. A file may hold either or both."""

UNUSED = re.compile(re.escape(f"{_ROOT}und_expert.model.visual.deepstack_merger_list."))
"""Tensors that no output of the model depends on: the mergers of the DeepStack features, which nobody reads."""


def released_name(name: str) -> str:
    """The released key of one of our parameters.

    Raises:
        KeyError: If the recipe has no parameter of that name.

    >>> released_name("mot.experts.act.layers.3.attention.query.weight")
    'model.qwen3_vl_with_expert.act_expert.layers.3.self_attn.q_proj.weight'
    """
    for ours, theirs in _PREFIXES.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            layer = re.fullmatch(r"(layers\.\d+)\.(.+)\.(weight|bias)", rest)
            if layer and ours.startswith("mot."):
                rest = f"{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"
            return theirs + rest
    raise KeyError(name)


def released_names(names: Iterable[str]) -> Mapping[str, str]:
    """Our name of each released key, for the parameters in `names`."""
    return {released_name(name): name for name in names}
