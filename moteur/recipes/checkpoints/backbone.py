"""A model whose understanding comes from a vision-language backbone, and whose other parts are fresh."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from moteur.recipes.checkpoints.backbone_config import check_backbone_config
from moteur.recipes.checkpoints.backbone_pixels import NEW, OLD, stated_pixels
from moteur.recipes.checkpoints.files import PATTERNS as OF_WEIGHTS
from moteur.recipes.checkpoints.files import Stored, find_tensors
from moteur.recipes.checkpoints.layouts import Layout, is_cosmos
from moteur.recipes.checkpoints.load import CONFIG, Loaded, Options, fill, read_json
from moteur.recipes.checkpoints.meta import build_weightless
from moteur.recipes.checkpoints.released_names import ROOTS, released_name
from moteur.recipes.config import InternVLAA1Config, Variant

PATTERNS = (*OF_WEIGHTS, OLD, NEW)
"""What may be needed of a Hub repository."""

_NAMES: Mapping[Variant, str] = {"3B": "Qwen3-VL", "2B": "InternVL3"}
_EMBEDDING = "model.language_model.embed_tokens.weight"
_READ_OUT = "lm_head.weight"
_UNDERSTANDING = ("backbone.", "mot.experts.und.")
_OLDER = {
    r"language_model\.model\.": "model.language_model.",
    r"language_model\.lm_head\.": "lm_head.",
    r"(vision_tower|multi_modal_projector|visual)\.": r"model.\1.",
}


def load_backbone(make: Callable[..., Any], folder: Path, options: Options, *, accept: Collection[str] = ()) -> Loaded:
    """Build a model, fill vision and `und` from a backbone's folder, Cosmos from its own, the rest from the seed.

    Raises:
        ValueError: See `from_backbone`.
    """
    config = options.config
    assert config is not None
    values, pixels = read_json(folder / CONFIG), stated_pixels(folder)
    try:
        notes = check_backbone_config(values, config, pixels=pixels, accept=accept)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    files = _renamed(find_tensors(folder))
    if config.gen is not None and options.cosmos is None:
        raise ValueError("cosmos: a backbone comes without the Cosmos tokenizer, expected where it is, got None")
    decoder = bool(options.decoder)
    model = build_weightless(make, config, decoder=decoder)
    layout = backbone_layout(config, tied=_tied(values))
    report = fill(str(folder), files, model, layout, options, notes=notes, fresh=_is_fresh)
    return Loaded(model, report, {})


def backbone_layout(config: InternVLAA1Config, *, tied: bool) -> Layout:
    """Names of the backbone that this configuration reads with.

    Args:
        config: Ours.
        tied: The backbone's language model reads out with its own text embedding.
    """
    variant = config.variant
    root = f"{ROOTS[variant]}und_expert."

    def theirs(name: str) -> str:
        if name == "backbone.text_embedding.weight":
            return _EMBEDDING
        return released_name(name, variant).removeprefix(root)

    def unused(name: str) -> str | None:
        if name == _READ_OUT:
            return "the language model's read-out, no text is written"
        if name.startswith("model.visual.deepstack_merger_list."):
            return "no output of the model depends on it"
        return None

    return Layout(_NAMES[variant], theirs, {_READ_OUT: _EMBEDDING} if tied else {}, unused)


def _is_fresh(name: str) -> bool:
    return not name.startswith(_UNDERSTANDING) and not is_cosmos(name)


def _renamed(found: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors under the newer of the names that backbones were saved with.

    Raises:
        ValueError: Two of them mean the same tensor.
    """
    files: dict[str, Stored] = {}
    for name, stored in found.items():
        if (newer := _newer(name)) in files:
            raise ValueError(f"{stored.path}: {name} and {files[newer].name} are two names of one tensor; keep one")
        files[newer] = stored
    return files


def _newer(name: str) -> str:
    for pattern, replacement in _OLDER.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return name


def _tied(values: Mapping[str, Any]) -> bool:
    text = values.get("text_config")
    stated = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return bool(values.get("tie_word_embeddings", False) if stated is None else stated)
