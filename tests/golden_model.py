"""The recorded models and cases of the reference implementation, as our recipe takes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from moteur.flowmatch import BetaTime
from moteur.recipes import (
    Inputs,
    InternVLAA1,
    InternVLAA1Config,
    InternVLVision,
    Qwen3VLVision,
    Targets,
)
from moteur.recipes.checkpoints.keymap import released_keys
from moteur.recipes.config import ExpertSize, TokenIds, Variant
from moteur.tokenizers import CosmosSize


def recorded_model(golden: Path, variant: Variant) -> tuple[InternVLAA1, set[str]]:
    """The recorded weights in our model, and the released keys that were not needed."""
    folder = golden / f"internvla_a1_{variant.lower()}"
    config = config_of(json.loads((folder / "dims.json").read_text()), variant)
    model = InternVLAA1(config, decoder=True)
    stored = load_file(folder / "model.safetensors")
    keys = released_keys(config)
    state = {name: torch.cat([stored.pop(key) for key in keys.sources(name)]) for name in model.state_dict()}
    model.load_state_dict(state)
    return model.eval(), set(stored)


def recorded_case(
    golden: Path, name: str, model: InternVLAA1, device: torch.device
) -> tuple[dict[str, torch.Tensor], Inputs, Targets]:
    """A recorded case: all its tensors, and what the model takes of them. The 3B cases hold recorded patches too."""
    config = model.config
    case = load_file(golden / f"internvla_a1_{config.variant.lower()}" / f"{name}.safetensors", device=str(device))
    before = config.image_tokens * config.views if config.variant == "3B" else 0  # 2B records the text alone
    inputs = Inputs(
        frames=case["in.images"][:, :, :2],
        instruction=case["in.input_ids"][:, before:],
        attention_mask=case["in.attention_mask"][:, before:].bool(),
        view_valid=case["in.img_masks"],
        state=case["in.state"],
    )
    return case, inputs, Targets(actions=case["in.actions"], future_frames=case["in.images"][:, :, 2])


def config_of(dims: dict, variant: Variant) -> InternVLAA1Config:
    """The configuration of a recorded model."""
    text, expert, cosmos = dims["text"], dims["expert"], dims["cosmos"]
    size = ExpertSize(dim=expert["hidden_size"], mlp_dim=expert["intermediate_size"])
    marks = (dims["vision_start_token_id"], dims["vision_end_token_id"]) if variant == "3B" else (None, None)
    return InternVLAA1Config(
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        und=ExpertSize(dim=text["hidden_size"], mlp_dim=text["intermediate_size"]),
        gen=size,
        act=size,
        norm_eps=1e-6,
        qk_norm=variant == "3B",
        qkv_bias=variant == "2B",
        rope_base=text["rope_theta"],
        rope_sections=tuple(text["mrope_section"]) if variant == "3B" else None,
        vocabulary=text["vocab_size"],
        text_scaling=variant == "2B",
        token_ids=TokenIds(
            image=dims["image_token_id"], vision_start=marks[0], vision_end=marks[1], pad=dims["pad_token_id"]
        ),
        vision=_qwen3_vl(dims) if variant == "3B" else _internvl(dims["vision"]),
        cosmos=CosmosSize(
            channels=cosmos["channels"],
            multipliers=tuple(cosmos["channels_mult"]),
            residual_blocks=cosmos["num_res_blocks"],
            patch=4,
            downsamplings=1,
            z_channels=cosmos["z_channels"],
            groups=32,
            eps=1e-6,
            latent_channels=cosmos["latent_channels"],
        ),
        views=3,
        frame_size=dims["image_size"],
        text_length=dims["tokenizer_max_length"],
        history=15,
        foresight_size=256,
        foresight_cell=8,
        foresight_eps=1e-5,
        chunk=dims["chunk_size"],
        state_dim=dims["max_state_dim"],
        action_dim=dims["max_action_dim"],
        min_period=4e-3,
        max_period=4.0,
        steps=dims["num_inference_steps"],
        time=BetaTime.released(),
        foresight_weight=0.01,
        action_reduction="released",
    )


def _qwen3_vl(dims: dict) -> Qwen3VLVision:
    vision = dims["vision"]
    return Qwen3VLVision(
        depth=vision["depth"],
        dim=vision["hidden_size"],
        mlp_dim=vision["intermediate_size"],
        heads=vision["num_heads"],
        patch=vision["patch_size"],
        patch_frames=vision["temporal_patch_size"],
        merge=vision["spatial_merge_size"],
        positions=vision["num_position_embeddings"],
        rope_base=10_000.0,
        deepstack=tuple(vision["deepstack_visual_indexes"]),
        min_pixels=dims["image_size"] ** 2,
        max_pixels=dims["image_size"] ** 2,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _internvl(vision: dict) -> InternVLVision:
    return InternVLVision(
        depth=vision["num_hidden_layers"],
        dim=vision["hidden_size"],
        mlp_dim=vision["intermediate_size"],
        heads=vision["num_attention_heads"],
        size=vision["image_size"][0],
        patch=vision["patch_size"][0],
        merge=2,
        norm_eps=1e-6,
        projector_eps=1e-5,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
