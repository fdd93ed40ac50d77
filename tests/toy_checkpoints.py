"""Checkpoint folders at toy size, in the layouts that others write."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from moteur.recipes.checkpoints import keymap
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1

UND = {
    "3B": "model.qwen3_vl_with_expert.und_expert.",
    "2B": "model.internvl_with_expert.und_expert.",
}
SECOND_NAME = f"{UND['3B']}model.language_model.embed_tokens.weight"
FIRST_NAME = f"{UND['3B']}lm_head.weight"


def released_tensors(model: InternVLAA1) -> dict[str, Tensor]:
    """What a released file of this model would hold, the tensors that nobody reads among them."""
    variant = model.config.variant
    named = keymap.released_tensors(model.state_dict(), model.config)
    tensors = {name: tensor.clone() for name, tensor in named.items()}
    draw = torch.Generator().manual_seed(1)
    if variant == "3B":
        merger = f"{UND['3B']}model.visual.deepstack_merger_list.0."
        tensors[f"{merger}norm.weight"] = torch.randn(64, generator=draw)
        tensors[f"{merger}linear_fc1.weight"] = torch.randn(64, 64, generator=draw)
    else:
        tensors[f"{UND['2B']}lm_head.weight"] = torch.randn(128, 24, generator=draw)
        tensors["model.imagenet_mean"] = torch.rand(1, 3, 1, 1, generator=draw)
        tensors["model.imagenet_std"] = torch.rand(1, 3, 1, 1, generator=draw)
    return tensors


def released_config(config: InternVLAA1Config, **changes: object) -> dict[str, Any]:
    """A `config.json` in LeRobot's form that states this configuration."""
    backbone = {"internvl_variant": "internvl_24l"}
    if config.variant == "3B":
        backbone = {"type": "qwena1", "qwen3_vl_variant": "qwen3_vl_28l", "action_expert_variant": "qwen3_28l"}
    values = {
        **backbone,
        "dtype": "float32",
        "n_obs_steps": 1,
        "chunk_size": config.chunk,
        "n_action_steps": config.chunk,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "num_inference_steps": config.steps,
        "time_sampling_beta_alpha": config.time.alpha,
        "time_sampling_beta_beta": config.time.beta,
        "time_sampling_scale": config.time.scale,
        "time_sampling_offset": config.time.offset,
        "min_period": config.min_period,
        "max_period": config.max_period,
        "image_resolution": [config.frame_size, config.frame_size],
        "scale_factor": config.foresight_cell,
        "lambda_gen": config.foresight_weight,
        "tokenizer_max_length": config.text_length,
        "freeze_vision_encoder": False,
        "train_expert_only": False,
        "train_vlm_only": False,
        "optimizer_lr": 5e-5,
        "optimizer_betas": [0.9, 0.95],
        "scheduler_warmup_steps": 2000,
        "normalization_mapping": {"STATE": "IDENTITY"},
        "input_features": {"observation.state": {"type": "STATE", "shape": [config.state_dim]}},
        "output_features": {"action": {"type": "ACTION", "shape": [config.action_dim]}},
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not ...}


STATISTICS = {"aloha": {"observation.state": {"mean": [0.1], "std": [1.0], "min": [-1.0], "max": [1.0]}}}


def write_tensors(folder: Path, tensors: dict[str, Tensor], *, shards: int = 1) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        places |= dict.fromkeys(names[shard::shards], file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def states_equal(left: InternVLAA1, right: InternVLAA1) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
