"""Files with random weights in the layouts that loading is measured on, at the sizes of a preset."""

import json
import re
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moteur.recipes import InternVLAA1, InternVLAA1Config
from moteur.recipes.checkpoints.fresh import build_weightless
from moteur.recipes.checkpoints.keymap import backbone_keys, is_understanding
from moteur.recipes.config import Qwen3VLVision

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "tests" / "golden" / "released_shapes_3b.json"
SECOND_NAME = "model.qwen3_vl_with_expert.und_expert.model.language_model.embed_tokens.weight"
WIDE = (  # what the released runs hold in float32
    *("input_layernorm.", "post_attention_layernorm.", "und_expert.model.language_model.norm.", "action_out_proj."),
)


def write_checkpoint(folder: Path, sizes: Mapping[str, int] | None = None) -> Path:
    """Every tensor of the released 3B model, stored once, with its `config.json`.

    Args:
        folder: Where to.
        sizes: `depth`, `vision_depth` and `vocabulary` of a model that is cut to them.
    """
    shapes = {name: shape for name, shape in json.loads(SHAPES.read_text()).items() if name != SECOND_NAME}
    if sizes is not None:
        shapes = {name: _cut(name, shape, sizes) for name, shape in shapes.items() if _is_kept(name, sizes)}
    path = write_random(folder / "model.safetensors", shapes, wide=WIDE)
    (folder / "config.json").write_text(json.dumps({"type": "qwena1", "dtype": "bfloat16", "chunk_size": 50}))
    return path


def _is_kept(name: str, sizes: Mapping[str, int]) -> bool:
    layer, block = re.search(r"layers\.(\d+)\.", name), re.search(r"visual\.blocks\.(\d+)\.", name)
    return (layer is None or int(layer[1]) < sizes["depth"]) and (
        block is None or int(block[1]) < sizes["vision_depth"]
    )


def _cut(name: str, shape: list[int], sizes: Mapping[str, int]) -> list[int]:
    return [sizes["vocabulary"], shape[1]] if name.endswith("lm_head.weight") else shape


def write_backbone(folder: Path, config: InternVLAA1Config) -> Path:
    """What `from_backbone` reads of a Qwen3-VL backbone that fits a configuration, in bfloat16."""
    vision = config.vision
    assert isinstance(vision, Qwen3VLVision)
    state = build_weightless(InternVLAA1, config, decoder=False).state_dict()
    keys = backbone_keys(config, tied=True)
    parts = [keys.shapes(name, tuple(value.shape)) for name, value in state.items() if is_understanding(name)]
    shapes = {key: list(shape) for stored in parts for key, shape in stored.items()}
    path = write_random(folder / "model.safetensors", shapes)
    ids = config.token_ids
    rope = {"rope_type": "default", "mrope_section": config.rope_sections, "mrope_interleaved": True}
    text = {
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.und.dim,
        "intermediate_size": config.und.mlp_dim,
        "head_dim": config.head_dim,
        "attention_bias": config.qkv_bias,
        "rms_norm_eps": config.norm_eps,
        "vocab_size": config.vocabulary,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "rope_parameters": {**rope, "rope_theta": config.rope_base},
    }
    tower = {
        "depth": vision.depth,
        "hidden_size": vision.dim,
        "intermediate_size": vision.mlp_dim,
        "num_heads": vision.heads,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.patch_frames,
        "spatial_merge_size": vision.merge,
        "num_position_embeddings": vision.positions,
        "deepstack_visual_indexes": vision.deepstack,
        "out_hidden_size": config.und.dim,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "rope_parameters": {"rope_theta": vision.rope_base},
    }
    tokens = {"image": ids.image, "vision_start": ids.vision_start, "vision_end": ids.vision_end}
    values = {f"{name}_token_id": token for name, token in tokens.items()}
    values |= {"model_type": "qwen3_vl", "text_config": text, "vision_config": tower}
    (folder / "config.json").write_text(json.dumps(values))
    return path


def write_cosmos(folder: Path, config: InternVLAA1Config, *, torchscript: bool) -> list[Path]:
    """The tokenizer's encoder as safetensors, or both halves as TorchScript; in bfloat16."""
    state = build_weightless(InternVLAA1, config, decoder=True).state_dict()
    paths: list[Path] = []
    for half in ("encoder", "decoder") if torchscript else ("encoder",):
        prefix = f"foresight.{half}."
        shapes = {name.removeprefix(prefix): list(value.shape) for name, value in state.items() if prefix in name}
        path = folder / f"{half}.{'jit' if torchscript else 'safetensors'}"
        paths.append(_write_torchscript(path, shapes) if torchscript else write_random(path, shapes))
    return paths


def write_random(path: Path, shapes: Mapping[str, list[int]], *, wide: tuple[str, ...] = ()) -> Path:
    """A safetensors file with random values of plausible size, kept if it is there already.

    In bfloat16; names that hold one of `wide` in float32. Maps are of the size of 1/√2048; gains of norms, which are
    weights of one axis, lie between 1/2 and 1.
    """
    widths = {name: 4 if any(part in name for part in wide) else 2 for name in shapes}
    header, place = {}, 0
    for name in sorted(shapes, key=lambda name: -widths[name]):
        size = prod(shapes[name]) * widths[name]
        dtype = {2: "BF16", 4: "F32"}[widths[name]]
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [place, place + size]}
        place += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    if path.is_file() and path.stat().st_size == 8 + len(text) + place:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            left = prod(shapes[name])
            while left:
                count = min(left, 2**24)
                bits = draw.integers(0, 2**16, count, dtype=np.uint16)
                gain = len(shapes[name]) == 1 and name.endswith("weight")
                # Any mantissa; gains from 1/2 to 1, the rest of any sign and a magnitude from 1/64 to 1/32.
                small = (bits & 0x007F) | 0x3F00 if gain else (bits & 0x807F) | 0x3C80
                file.write((small.astype(np.uint32) << 16 if widths[name] == 4 else small).tobytes())
                left -= count
    return path


class _Tree(nn.Module):
    """A module with given tensors under given names, and no code of a tokenizer."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        inside: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inside.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, parts in inside.items():
            self.add_module(name, _Tree(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: only the tensors matter."""
        return x


def _write_torchscript(path: Path, shapes: Mapping[str, list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and its files are what there is
        torch.jit.save(torch.jit.trace(_Tree(tensors), torch.zeros(1)), path)
    return path
