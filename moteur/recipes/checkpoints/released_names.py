"""The names under which released InternVLA-A1 files store our tensors."""

import re
from collections.abc import Iterable, Mapping

from moteur.recipes.config import Variant

_3B = "model.qwen3_vl_with_expert."
_2B = "model.internvl_with_expert."
ROOTS: Mapping[Variant, str] = {"3B": _3B, "2B": _2B}
"""What the names of a variant's experts begin with."""

_SHARED = {
    "foresight.head.downsample.": "model.downsample_conv.",
    "foresight.head.upsample.": "model.upsample_conv.",
    "action.state_in.": "model.state_proj.",
    "action.action_in.": "model.action_in_proj.",
    "action.fusion_in.": "model.action_time_mlp_in.",
    "action.fusion_out.": "model.action_time_mlp_out.",
    "action.action_out.": "model.action_out_proj.",
}

_PREFIXES: Mapping[Variant, Mapping[str, str]] = {
    "3B": {
        "backbone.text_embedding.": f"{_3B}und_expert.lm_head.",
        "backbone.vision.": f"{_3B}und_expert.model.visual.",
        "mot.experts.und.": f"{_3B}und_expert.model.language_model.",
        "mot.experts.gen.": f"{_3B}gen_expert.",
        "mot.experts.act.": f"{_3B}act_expert.",
        "foresight.head.project_in.": "model.cosmos_in_proj.",
        "foresight.head.norm.": "model.cosmos_out_layer_norm.",
        "foresight.head.project_out.": "model.cosmos_out_proj.",
        "foresight.encoder.": "model.cosmos._enc_model.",
        "foresight.decoder.": "model.cosmos._dec_model.",
        **_SHARED,
    },
    "2B": {
        "backbone.text_embedding.": f"{_2B}und_expert.model.language_model.embed_tokens.",
        "backbone.vision.": f"{_2B}und_expert.model.vision_tower.",
        "backbone.projector.norm.": f"{_2B}und_expert.model.multi_modal_projector.layer_norm.",
        "backbone.projector.hidden.": f"{_2B}und_expert.model.multi_modal_projector.linear_1.",
        "backbone.projector.output.": f"{_2B}und_expert.model.multi_modal_projector.linear_2.",
        "mot.experts.und.": f"{_2B}und_expert.model.language_model.",
        "mot.experts.gen.": f"{_2B}gen_expert.model.",
        "mot.experts.act.": f"{_2B}act_expert.model.",
        "foresight.head.project_in.": "model.gen_in_proj.",
        "foresight.head.norm.": "model.gen_out_layer_norm.",
        "foresight.head.project_out.": "model.gen_out_proj.",
        "foresight.encoder.": "model.cosmos_tokenizer._enc_model.",
        "foresight.decoder.": "model.cosmos_tokenizer._dec_model.",
        **_SHARED,
    },
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

TIED = {f"{_3B}und_expert.model.language_model.embed_tokens.weight": f"{_3B}und_expert.lm_head.weight"}
"""A second name of a tensor, and the name we know it by. A file may hold either or both. In 2B nothing is tied."""

UNUSED = re.compile(
    "|".join(
        (
            re.escape(f"{_3B}und_expert.model.visual.deepstack_merger_list."),
            re.escape(f"{_2B}und_expert.lm_head."),
            r"model\.imagenet_(mean|std)$",
        )
    )
)
"""Released keys that no output of the model depends on.

3B: the mergers of the DeepStack features, which nobody reads. 2B: the language model's read-out, a matrix of its own
and not the text embedding, and two buffers of pixel constants, which the configuration states.
"""


def released_name(name: str, variant: Variant = "3B") -> str:
    """The released key of one of our parameters.

    Args:
        name: As in our state dict.
        variant: Whose file.

    Raises:
        KeyError: If the recipe has no parameter of that name.

    >>> released_name("mot.experts.act.layers.3.attention.query.weight")
    'model.qwen3_vl_with_expert.act_expert.layers.3.self_attn.q_proj.weight'
    >>> released_name("mot.experts.act.layers.3.attention.query.bias", "2B")
    'model.internvl_with_expert.act_expert.model.layers.3.self_attn.q_proj.bias'
    """
    for ours, theirs in _PREFIXES[variant].items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            layer = re.fullmatch(r"(layers\.\d+)\.(.+)\.(weight|bias)", rest)
            if layer and ours.startswith("mot."):
                rest = f"{layer[1]}.{_LAYER[layer[2]]}.{layer[3]}"
            return theirs + rest
    raise KeyError(name)


def released_names(names: Iterable[str], variant: Variant = "3B") -> Mapping[str, str]:
    """Our name of each released key, for the parameters in `names`."""
    return {released_name(name, variant): name for name in names}
