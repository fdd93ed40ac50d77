"""Key maps between checkpoint files and our state dict.

Our query, key and value projections are one matrix, `attention.qkv`, and so are gate and up, `mlp.gate_up`; other
files store them apart. So one tensor of ours is made of one or several stored ones, joined along the rows.

A layout is data: prefixes of ours and theirs, names of a layer's parts, what is tied and what is left out on purpose.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from torch import Tensor

from moteur.recipes.config import InternVLAA1Config, Variant
from moteur.recipes.pi0_config import Pi0Config

Config: TypeAlias = InternVLAA1Config | Pi0Config
Release: TypeAlias = Literal["3B", "2B", "pi0", "pi05"]
"""Name of a released model: the variant of its configuration, and its preset."""

_3B = "model.qwen3_vl_with_expert."
_2B = "model.internvl_with_expert."
ROOTS: Mapping[Release, str] = {"3B": _3B, "2B": _2B}
"""Prefix of the experts' keys in a released file."""

_PI = "paligemma_with_expert."
_TOWER = f"{_PI}paligemma.model.vision_tower.vision_model."
_WORDS = (f"{_PI}paligemma.model.language_model.embed_tokens.", f"{_PI}paligemma.lm_head.")

_SHARED = {
    "foresight.head.downsample.": "model.downsample_conv.",
    "foresight.head.upsample.": "model.upsample_conv.",
    "action.state_in.": "model.state_proj.",
    "action.action_in.": "model.action_in_proj.",
    "action.fusion_in.": "model.action_time_mlp_in.",
    "action.fusion_out.": "model.action_time_mlp_out.",
    "action.action_out.": "model.action_out_proj.",
}
_PI_SHARED = {
    "backbone.text_embedding.": _WORDS[1],
    "backbone.vision.patches.": f"{_TOWER}embeddings.patch_embedding.",
    "backbone.vision.positions.": f"{_TOWER}embeddings.position_embedding.",
    "backbone.vision.blocks.": f"{_TOWER}encoder.layers.",
    "backbone.vision.norm.": f"{_TOWER}post_layernorm.",
    "backbone.projector.": f"{_PI}paligemma.model.multi_modal_projector.linear.",
    "mot.experts.vlm.": f"{_PI}paligemma.model.language_model.",
    "mot.experts.act.norm.modulation.": f"{_PI}gemma_expert.model.norm.dense.",
    "mot.experts.act.": f"{_PI}gemma_expert.model.",
    "action.action_in.": "action_in_proj.",
    "action.action_out.": "action_out_proj.",
}
_PREFIXES: Mapping[Release, Mapping[str, str]] = {
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
    "pi0": {
        **_PI_SHARED,
        "action.state_in.": "state_proj.",
        "action.fusion_in.": "action_time_mlp_in.",
        "action.fusion_out.": "action_time_mlp_out.",
    },
    "pi05": {**_PI_SHARED, "action.time_in.": "time_mlp_in.", "action.time_out.": "time_mlp_out."},
}
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention_norm.modulation": "input_layernorm.dense",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_norm.modulation": "post_attention_layernorm.dense",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_TOWER_LAYER = {
    "norm1": "layer_norm1",
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.linear_fc1": "mlp.fc1",
    "mlp.linear_fc2": "mlp.fc2",
}
_PARTS = {"mot.": _LAYER, "backbone.vision.blocks.": _TOWER_LAYER}
_JOINED = {
    "attention.qkv": ("attention.query", "attention.key", "attention.value"),
    "mlp.gate_up": ("mlp.gate", "mlp.up"),
}
_PI_JOINED = {**_JOINED, "attn.qkv": ("attn.query", "attn.key", "attn.value")}

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
_PI_UNUSED: Mapping[str, str] = {r"(model\.)?paligemma_with_expert\.gemma_expert\.lm_head\.": _NO_OUTPUT}
# Where a file has both, the first counts.
_SPELLINGS = (
    (_WORDS[1], _WORDS[0]),
    ("", ""),
    ("action_time_mlp_", "time_mlp_"),
    ("time_mlp_", "action_time_mlp_"),
)
_OUTDATED = "an older copy of the text embedding, whose other name counts"
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
        apart: Projections that we join and the file stores apart: our name, and what the parts are called here.
        decoder: The model holds the Cosmos decoder.
        tied: Second keys that a file may store, and the first ones.
        reasons: Patterns of keys that are left out on purpose, and why.
    """

    name: str
    config: Config
    key: Callable[[str], str] = str
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    decoder: bool = True
    tied: Mapping[str, str] = field(default_factory=dict[str, str])
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def own(self) -> bool:
        """Whether the layout is our own."""
        return self.name == _OWN

    def sources(self, name: str) -> tuple[str, ...]:
        """Keys of the stored tensors that make one of ours, joined along the rows in this order."""
        return tuple(self.key(part) for part in separate(name, self.apart))

    def shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Expected shape of each of those stored tensors, for one of ours of the given shape."""
        keys = self.sources(name)
        if len(keys) == 1:
            return {keys[0]: shape}
        rows = [shape[0] // len(keys)] * len(keys)
        if ".attention.qkv." in name:  # there may be fewer heads of keys and values than of queries
            key_rows = self.config.kv_heads * self.config.head_dim
            rows = [shape[0] - 2 * key_rows, key_rows, key_rows]
        return {key: (count, *shape[1:]) for key, count in zip(keys, rows, strict=True)}

    def unused(self, key: str) -> str | None:
        """Reason why a stored tensor is left out on purpose, or None."""
        return next((reason for pattern, reason in self.reasons.items() if re.match(pattern, key)), None)


def own_keys(config: Config, keys: Collection[str], *, decoder: bool = True) -> KeyMap:
    """Key map of our own layout for a file with these keys; earlier versions store the projections apart."""
    apart = re.compile(r"mot\..*\.(attention\.(query|key|value)|mlp\.gate)\.")
    joined = _JOINED if any(apart.match(key) for key in keys) else {}
    return KeyMap(_OWN, config, apart=joined, decoder=decoder, reasons=_without_decoder(config, str, decoder))


def released_keys(config: Config, keys: Collection[str] = (), *, decoder: bool = True) -> KeyMap:
    """Key map of the released checkpoints of the variant that `config` describes.

    Files of π0 and π0.5 differ in spelling: LeRobot writes "model." before every key, both codes wrote the time's maps
    under two names, and the text embedding has two.

    Args:
        config: Sizes of the model.
        keys: Those of the file, whose spelling is followed. None of them: as openpi converts its weights.
        decoder: The model holds the Cosmos decoder.
    """
    key = partial(released_name, variant=config.variant)
    name = f"released {config.variant}"
    if not isinstance(config, Pi0Config):
        reasons = {**_without_decoder(config, key, decoder), **_UNUSED}
        return KeyMap(name, config, key, apart=_JOINED, decoder=decoder, tied=TIED, reasons=reasons)
    root = "model." if any(each.startswith(f"model.{_PI}") for each in keys) else ""

    def spelled(ours: str) -> str:
        usual = key(ours)
        known = [usual.replace(old, new) for old, new in _SPELLINGS]
        return root + next((name for name in known if root + name in keys), usual)

    outdated = {re.escape(root + _WORDS[1]): _OUTDATED} if f"{root}{_WORDS[0]}weight" in keys else {}
    return KeyMap(name, config, spelled, apart=_PI_JOINED, decoder=False, reasons={**_PI_UNUSED, **outdated})


def backbone_keys(config: InternVLAA1Config, *, tied: bool) -> KeyMap:
    """Key map of the vision-language backbone that `config` reads with, in Hugging Face's newer names.

    The backbone's output matrix may be `tied`: it is its text embedding then.
    """
    root = f"{ROOTS[config.variant]}und_expert."

    def key(name: str) -> str:
        if name == "backbone.text_embedding.weight":
            return _EMBEDDING
        return released_name(name, config.variant).removeprefix(root)

    second = {"lm_head.weight": _EMBEDDING} if tied else {}
    return KeyMap(_BACKBONES[config.variant], config, key, apart=_JOINED, tied=second, reasons=_UNUSED)


def _without_decoder(config: Config, key: Callable[[str], str], decoder: bool) -> dict[str, str]:  # noqa: FBT001
    """Reason for leaving out the Cosmos decoder, unless the model holds it or has no foresight."""
    if decoder or isinstance(config, Pi0Config) or config.gen is None:
        return {}
    return {re.escape(key(_DECODER)): "Cosmos decoder, not asked for"}


def released_name(name: str, variant: Release) -> str:
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
            layer = re.fullmatch(r"((?:layers\.)?\d+)\.(.+)\.(weight|bias)", rest)
            parts = next((parts for start, parts in _PARTS.items() if ours.startswith(start)), None)
            if layer and parts is not None:
                rest = f"{layer[1]}.{parts[layer[2]]}.{layer[3]}"
            return theirs + rest
    raise KeyError(name)


def released_tensors(state: Mapping[str, Tensor], config: Config, keys: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of our state dict under their released keys, in the spelling of a file that has these `keys`.

    Joined projections are views of their rows.
    """
    layout, found = released_keys(config, keys), dict[str, Tensor]()
    for name, tensor in state.items():
        shapes = layout.shapes(name, tuple(tensor.shape))
        parts = [tensor] if len(shapes) == 1 else tensor.split([shape[0] for shape in shapes.values()])
        found |= dict(zip(shapes, parts, strict=True))
    return found


def separate(name: str, apart: Mapping[str, tuple[str, ...]] = _JOINED) -> tuple[str, ...]:
    """Names of the projections that one of our tensors joins, or its own name.

    Examples:
        >>> separate("mot.experts.act.layers.3.mlp.gate_up.weight")
        ('mot.experts.act.layers.3.mlp.gate.weight', 'mot.experts.act.layers.3.mlp.up.weight')
    """
    for joined, parts in apart.items():
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


def released_variant(keys: Iterable[str]) -> Release | None:
    """Variant of the released layout that these keys have, or None."""
    known = list(keys)
    if any(_PI in key for key in known):
        conditioned = _PI_SHARED["mot.experts.act.norm.modulation."]
        return "pi05" if any(conditioned in key for key in known) else "pi0"
    found: list[Release] = [variant for variant, root in ROOTS.items() if any(key.startswith(root) for key in known)]
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
    r"(model\.)?(vlm|dit|embed_action_time)\.": "π0 in the layout of transformers: take openpi's or LeRobot's files",
    r"(model\.)?paligemma_with_expert\.": "a released π0 or π0.5: its configuration is preset('pi0') or preset('pi05')",
    r"(backbone|mot\.experts|foresight|action)\.": "our own layout, saved by save_pretrained",
}


def suggestion(keys: Collection[str]) -> str:
    """Guess what a file with these keys is, for an error message."""
    for pattern, meaning in _SIGNS.items():
        count = sum(re.match(pattern, key) is not None for key in keys)
        if count * 2 >= max(1, len(keys)) or (count and "lora" in pattern):
            return f"it looks like {meaning}"
    return "its names are not those of any file known here"
