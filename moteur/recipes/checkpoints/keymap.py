"""Key maps between checkpoint files and our state dict.

Our query, key and value projections are one matrix, `attention.qkv`, and so are gate and up, `mlp.gate_up`; other
files store them apart. So one tensor of ours is made of one or several stored ones, joined along the rows.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from moteur.recipes.config import InternVLAA1Config, Variant

_3B = "model.qwen3_vl_with_expert."
_2B = "model.internvl_with_expert."
ROOTS: Mapping[Variant, str] = {"3B": _3B, "2B": _2B}
"""Prefix of the experts' keys in a released file."""

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
_JOINED = {
    "attention.qkv": ("attention.query", "attention.key", "attention.value"),
    "mlp.gate_up": ("mlp.gate", "mlp.up"),
}

TIED: Mapping[str, str] = {
    f"{_3B}und_expert.model.language_model.embed_tokens.weight": f"{_3B}und_expert.lm_head.weight"
}
"""Second key of a tensor in released 3B files, and its first. A file may hold either or both. In 2B nothing is tied."""

_NO_OUTPUT = "no output of the model depends on it"
_UNUSED: Mapping[str, str] = {
    r"model\.qwen3_vl_with_expert\.und_expert\.model\.visual\.deepstack_merger_list\.": _NO_OUTPUT,
    r"model\.internvl_with_expert\.und_expert\.lm_head\.": _NO_OUTPUT,  # no text is written; not 2B's embedding
    r"model\.imagenet_(mean|std)$": "a constant of the pixels, which the configuration states",
    r"model\.visual\.deepstack_merger_list\.": _NO_OUTPUT,
    r"lm_head\.weight$": "the output matrix of the language model, no text is written",
}
_OWN = "moteur"
_DECODER = "foresight.decoder."
_COSMOS = ("foresight.encoder.", _DECODER)

_BACKBONES: Mapping[Variant, str] = {"3B": "Qwen3-VL", "2B": "InternVL3"}
_EMBEDDING = "model.language_model.embed_tokens.weight"
_UNDERSTANDING = ("backbone.", "mot.experts.und.")
_OLDER = {
    r"language_model\.model\.": "model.language_model.",
    r"language_model\.lm_head\.": "lm_head.",
    r"(vision_tower|multi_modal_projector|visual)\.": r"model.\1.",
}


@dataclass(frozen=True)
class KeyMap:
    """Keys of a checkpoint layout for the tensors of our state dict.

    Attributes:
        name: Name of the layout in reports.
        config: Sizes of the model, which say how joined projections split.
        key: Key of one of our tensors, projections named apart.
        joined: The file stores joined projections as one tensor, as we do.
        decoder: The model holds the Cosmos decoder; otherwise stored ones are left out on purpose.
        tied: Second keys that a file may store, and the first ones.
    """

    name: str
    config: InternVLAA1Config
    key: Callable[[str], str] = str
    joined: bool = False
    decoder: bool = True
    tied: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def own(self) -> bool:
        """Whether the layout is our own."""
        return self.name == _OWN

    def sources(self, name: str) -> tuple[str, ...]:
        """Keys of the stored tensors that make one of ours, joined along the rows in this order."""
        return tuple(self.key(part) for part in ((name,) if self.joined else separate(name)))

    def shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Expected shape of each of those stored tensors, for one of ours of the given shape."""
        keys = self.sources(name)
        if len(keys) == 1:
            return {keys[0]: shape}
        key_rows = self.config.kv_heads * self.config.head_dim
        rows = (shape[0] // 2,) * 2 if len(keys) == 2 else (shape[0] - 2 * key_rows, key_rows, key_rows)  # noqa: PLR2004
        return {key: (count, *shape[1:]) for key, count in zip(keys, rows, strict=True)}

    def unused(self, key: str) -> str | None:
        """Reason why a stored tensor is left out on purpose, or None."""
        if not self.decoder and self.config.gen is not None and key.startswith(self.key(_DECODER)):
            return "Cosmos decoder, not asked for"
        reasons = {} if self.own else _UNUSED
        return next((reason for pattern, reason in reasons.items() if re.match(pattern, key)), None)


def own_keys(config: InternVLAA1Config, keys: Collection[str], *, decoder: bool = True) -> KeyMap:
    """Key map of our own layout for a file with these keys; earlier versions store the projections apart."""
    apart = re.compile(r"mot\..*\.(attention\.(query|key|value)|mlp\.gate)\.")
    return KeyMap(_OWN, config, joined=not any(apart.match(key) for key in keys), decoder=decoder)


def released_keys(config: InternVLAA1Config, *, decoder: bool = True) -> KeyMap:
    """Key map of the released checkpoints of the variant that `config` describes."""
    key = partial(released_name, variant=config.variant)
    return KeyMap(f"released {config.variant}", config, key, decoder=decoder, tied=TIED)


def backbone_keys(config: InternVLAA1Config, *, tied: bool) -> KeyMap:
    """Key map of the vision-language backbone that `config` reads with, in Hugging Face's newer names.

    The backbone's output matrix may be `tied`: it is its text embedding then.
    """
    root = f"{ROOTS[config.variant]}und_expert."

    def key(name: str) -> str:
        if name == "backbone.text_embedding.weight":
            return _EMBEDDING
        return released_name(name, config.variant).removeprefix(root)

    return KeyMap(_BACKBONES[config.variant], config, key, tied={"lm_head.weight": _EMBEDDING} if tied else {})


def released_name(name: str, variant: Variant) -> str:
    """Key in a released file of one of our tensors, projections named apart.

    Raises:
        KeyError: The model has no tensor of that name.

    Examples:
        >>> released_name("mot.experts.act.layers.3.attention.query.weight", "3B")
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


def released_tensors(state: Mapping[str, Tensor], config: InternVLAA1Config) -> dict[str, Tensor]:
    """Tensors of our state dict under their released keys; joined projections are views of their rows."""
    keys, found = released_keys(config), dict[str, Tensor]()
    for name, tensor in state.items():
        shapes = keys.shapes(name, tuple(tensor.shape))
        parts = [tensor] if len(shapes) == 1 else tensor.split([shape[0] for shape in shapes.values()])
        found |= dict(zip(shapes, parts, strict=True))
    return found


def separate(name: str) -> tuple[str, ...]:
    """Names of the projections that one of our tensors joins, or its own name.

    Examples:
        >>> separate("mot.experts.act.layers.3.mlp.gate_up.weight")
        ('mot.experts.act.layers.3.mlp.gate.weight', 'mot.experts.act.layers.3.mlp.up.weight')
    """
    for joined, parts in _JOINED.items():
        if f".{joined}." in name:
            return tuple(name.replace(joined, part) for part in parts)
    return (name,)


def is_cosmos(name: str) -> bool:
    """Whether one of our names belongs to the Cosmos tokenizer."""
    return name.startswith(_COSMOS)


def is_decoder(name: str) -> bool:
    """Whether one of our names belongs to the decoder of the Cosmos tokenizer, which a model may leave out."""
    return name.startswith(_DECODER)


def is_understanding(name: str) -> bool:
    """Whether one of our names belongs to what a backbone brings: vision tower, text embedding, `und`."""
    return name.startswith(_UNDERSTANDING)


def released_variant(keys: Iterable[str]) -> Variant | None:
    """Variant of the released layout that these keys have, or None."""
    known = list(keys)
    found: list[Variant] = [variant for variant, root in ROOTS.items() if any(key.startswith(root) for key in known)]
    return found[0] if len(found) == 1 else None


def newer_key(key: str) -> str:
    """Key that current versions of transformers give a backbone's tensor, for one that older versions saved."""
    for pattern, replacement in _OLDER.items():
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", replacement, key)
    return key


_SIGNS: Mapping[str, str] = {
    r"_orig_mod\.": "a compiled model's state dict: save the model inside torch.compile's wrapper",
    r"module\.": "the state dict of a DistributedDataParallel wrapper: save the model inside it",
    r".*\.lora_[AB]\.|base_model\.model\.": "a LoRA adapter: merge it into its base model first",
    r"(model\.)?(visual\.|language_model\.visual)": "a Qwen3-VL backbone: start from it with from_backbone",
    r"(model\.)?(vision_tower|multi_modal_projector)\.": "an InternVL backbone: start from it with from_backbone",
    r"vision_model\.|mlp1\.": "an InternVL backbone in its authors' own layout: from_backbone takes the -hf repository",
    r"(encoder|decoder)[./](conv_in|conv_out|mid|down|up|encoder|decoder|quant_conv)": (
        "the Cosmos tokenizer alone: moteur.tokenizers.load_weights reads it, or pass its folder as cosmos="
    ),
    r"model\.qwen3_vl_with_expert\.": "the released 3B variant: its configuration is preset('3B')",
    r"model\.internvl_with_expert\.": "the released 2B variant: its configuration is preset('2B')",
    r".*paligemma_with_expert\.": "a π0 checkpoint: another model",
    r"(backbone|mot\.experts|foresight|action)\.": "our own layout, saved by save_pretrained",
}


def suggestion(keys: Collection[str]) -> str:
    """Guess what a file with these keys is, for an error message."""
    for pattern, meaning in _SIGNS.items():
        count = sum(re.match(pattern, key) is not None for key in keys)
        if count * 2 >= max(1, len(keys)) or (count and "lora" in pattern):
            return f"it looks like {meaning}"
    return "its names are not those of any file known here"
