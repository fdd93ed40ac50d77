"""Vision towers of `transformers`, the same whichever of its versions is installed.

What changed between 4.57 and 5 is met here and nowhere else: the base of the rotary angles (an argument that nobody
passes, then a field of the configuration) and what the Qwen3-VL tower returns (a tuple, then a named output).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moteur.optional import require
from moteur.recipes.config import InternVLVision, Qwen3VLVision


def qwen3_vl_tower(sizes: Qwen3VLVision, *, dim: int) -> nn.Module:
    """Qwen3-VL's tower without the DeepStack mergers, its merged tokens `dim` wide."""
    kind = require("transformers", extra="vlm").Qwen3VLVisionModel
    tower = kind(
        kind.config_class(
            depth=sizes.depth,
            hidden_size=sizes.dim,
            hidden_act="gelu_pytorch_tanh",
            intermediate_size=sizes.mlp_dim,
            num_heads=sizes.heads,
            in_channels=3,
            patch_size=sizes.patch,
            spatial_merge_size=sizes.merge,
            temporal_patch_size=sizes.patch_frames,
            out_hidden_size=dim,
            num_position_embeddings=sizes.positions,
            deepstack_visual_indexes=[],
            initializer_range=0.02,
        )
    )
    # Half of a head's angles follow the rows, half the columns. The base is set here because no argument for it is
    # read by all versions: without this line one would take it from a default.
    spread = sizes.dim // sizes.heads // 2
    frequencies = 1 / sizes.rope_base ** (torch.arange(0, spread, 2, dtype=torch.float32) / spread)
    tower.rotary_pos_emb.register_buffer("inv_freq", frequencies, persistent=False)
    return tower


def merged_tokens(
    tower: nn.Module, patches: Float[Tensor, "patches values"], grid: Int[Tensor, "image 3"]
) -> Float[Tensor, "tokens dim"]:
    """Merged output of a Qwen3-VL tower for images of `grid` (frames, rows, columns), one after another."""
    output = tower(patches, grid_thw=grid)
    return output[0] if isinstance(output, tuple) else output.pooler_output


def intern_vit(sizes: InternVLVision) -> nn.Module:
    """InternViT, as InternVL3 has it."""
    kind = require("transformers", extra="vlm").InternVLVisionModel
    return kind(
        kind.config_class(
            hidden_size=sizes.dim,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            attention_bias=sizes.attention_bias,
            use_qk_norm=False,
            intermediate_size=sizes.mlp_dim,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_dropout=0.0,
            projection_dropout=0.0,
            initializer_range=0.02,
            norm_type="layer_norm",
            layer_norm_eps=sizes.norm_eps,
            image_size=(sizes.size, sizes.size),
            patch_size=(sizes.patch, sizes.patch),
            num_channels=3,
            use_mask_token=False,
            use_absolute_position_embeddings=True,
            layer_scale_init_value=0.1,
            use_mean_pooling=True,
        )
    )
