"""Names of a Hugging Face text model's weights, and those of an expert."""

import re
from collections.abc import Mapping

from torch import Tensor

_WORDS = {
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "q_norm": "query_norm",
    "k_norm": "key_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp": "mlp",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "norm": "norm",
    "dense": "modulation",
}
_EXPERT = re.compile(
    r"layers\.\d+\.(input_layernorm|post_attention_layernorm)(\.dense)?\.(weight|bias)"
    r"|layers\.\d+\.self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.(weight|bias))"
    r"|layers\.\d+\.mlp\.(gate|up|down)_proj\.weight"
    r"|norm(\.dense)?\.(weight|bias)"
)
_OUTSIDE = re.compile(r"embed_tokens\.weight|lm_head\.weight|(.+\.)?rotary_emb\.inv_freq")
_GENERATION = "_moe_gen"


def expert_state_dict(stored: Mapping[str, Tensor], *, prefix: str, suffix: str = "") -> dict[str, Tensor]:
    """Weights of a Hugging Face text model under the names that an `Expert` loads.

    The names are those of Qwen 2 and 3, Llama, Gemma and whatever is written like them; `dense` in the norms of π0.5;
    and those of BAGEL, whose generation expert stands beside the text model under names with `_moe_gen`. A name after
    `prefix` that no expert has is an error, and `Expert.load_state_dict` refuses what is missing. Text embedding,
    output matrix and rotary frequencies are left out. Tensors are the same objects; the expert joins query, key and
    value, and gate and up, as it loads.

    Args:
        stored: state dict of a whole model, or tensors of its files.
        prefix: start of the text model's names: `"model."` for a causal language model, `"model.language_model."` for
            most vision-language models, `"language_model.model."` for BAGEL, `""` for the text model alone. What does
            not start with it is left out.
        suffix: end of the names of an expert's modules, where several stand side by side: `"_moe_gen"` for BAGEL's
            generation expert.

    Raises:
        ValueError: for names that no expert has, or no name of an expert at all.

    Examples:
        >>> import torch
        >>> from moteur.mot import Expert
        >>> expert = Expert(dim=8, depth=1, heads=2, kv_heads=1, head_dim=4, mlp_dim=12)
        >>> rows = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
        >>> stored = {f"model.layers.0.self_attn.{name}.weight": torch.ones(shape) for name, shape in rows.items()}
        >>> stored |= {f"model.layers.0.mlp.{name}_proj.weight": torch.ones(12, 8) for name in ("gate", "up")}
        >>> stored |= {"model.layers.0.mlp.down_proj.weight": torch.ones(8, 12)}
        >>> norms = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")
        >>> stored |= {f"model.{name}.weight": torch.ones(8) for name in norms}
        >>> expert.load_state_dict(expert_state_dict(stored, prefix="model."))
        <All keys matched successfully>
    """
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for key, tensor in stored.items():
        name = key.removeprefix(prefix)
        marked = f"{suffix or _GENERATION}." in name
        if not key.startswith(prefix) or marked != bool(suffix) or _OUTSIDE.fullmatch(name):
            continue
        plain = name.replace(f"{suffix}.", ".") if suffix else name
        if _EXPERT.fullmatch(plain):
            found[".".join(_WORDS.get(word, word) for word in plain.split("."))] = tensor
        else:
            strange.append(key)
    if strange or not found:
        raise ValueError(
            f"stored: expected names of a text model's layers and norm after prefix={prefix!r}, with "
            f"suffix={suffix!r}, got {strange[:5] or list(stored)[:5]}"
        )
    return found
