"""Whose names a file uses, and what each of them is to our model."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moteur.recipes.checkpoints.released_names import ROOTS, TIED, UNUSED, released_name
from moteur.recipes.config import InternVLAA1Config, Variant

_DECODER = "foresight.decoder."
_COSMOS = re.compile(r"foresight\.(encoder|decoder)\.")
_UNUSED_BECAUSE = "no output of the model depends on it"
_PIXELS = re.compile(r"model\.imagenet_(mean|std)$")
_PIXELS_BECAUSE = "a constant of the pixels, which the configuration states"


@dataclass(frozen=True)
class Layout:
    """A way of naming tensors.

    Attributes:
        name: What reports call it.
        theirs: The name in the file of one of our parameters.
        tied: Second names that a file may store, and the first ones.
        unused: Why a name in the file is left out on purpose, or None if there is no reason to.
    """

    name: str
    theirs: Callable[[str], str]
    tied: Mapping[str, str]
    unused: Callable[[str], str | None]


def own_layout() -> Layout:
    """Our own names: those of the state dict."""
    return Layout("moteur", str, MappingProxyType({}), lambda _: None)


def released_layout(variant: Variant) -> Layout:
    """Names of the released checkpoints."""

    def unused(name: str) -> str | None:
        if _PIXELS.match(name):
            return _PIXELS_BECAUSE
        return _UNUSED_BECAUSE if UNUSED.match(name) else None

    return Layout(f"released {variant}", lambda name: released_name(name, variant), TIED, unused)


def without_decoder(layout: Layout, config: InternVLAA1Config, names: Collection[str]) -> Layout:
    """The same layout for a model without the Cosmos decoder: those tensors are left out on purpose."""
    decoder = layout.theirs(f"{_DECODER}x").removesuffix("x") if config.gen is not None else None
    if decoder is None or any(is_cosmos(name) and name.startswith(_DECODER) for name in names):
        return layout

    def unused(name: str) -> str | None:
        return "Cosmos decoder, not asked for" if name.startswith(decoder) else layout.unused(name)

    return Layout(layout.name, layout.theirs, layout.tied, unused)


def is_cosmos(name: str) -> bool:
    """Whether one of our names belongs to the Cosmos tokenizer."""
    return _COSMOS.match(name) is not None


def released_variant(names: Collection[str]) -> Variant | None:
    """Whose released names these are, if any."""
    found: list[Variant] = [variant for variant, root in ROOTS.items() if any(name.startswith(root) for name in names)]
    return found[0] if len(found) == 1 else None


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


def suggestion(names: Collection[str]) -> str:
    """What a file with these names may be, for an error message."""
    for pattern, meaning in _SIGNS.items():
        count = sum(re.match(pattern, name) is not None for name in names)
        if count * 2 >= max(1, len(names)) or (count and "lora" in pattern):
            return f"it looks like {meaning}"
    return "its names are not those of any file known here"
