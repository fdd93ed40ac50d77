"""InternVL3, the understanding backbone of the 2B variant: InternViT, projector, text embedding, plain positions."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from moteur.optional import require
from moteur.recipes.backbones.vision import normalised
from moteur.recipes.config import InternVLAA1Config, InternVLVision


class InternVL3(nn.Module):
    """Pictures to image tokens, nothing before or after those of a view.

    Each of them advances the position by one. Source: "InternVL3", arXiv 2504.10479.

    Attributes:
        text_embedding: Embedding of the instruction.
        advance: For `understanding_stream`, with `offsets`.
    """

    advance: Tensor
    offsets: Tensor

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        vision = config.vision
        assert isinstance(vision, InternVLVision)
        self.sizes = vision
        self.text_embedding = nn.Embedding(config.vocabulary, config.und.dim)
        self.vision = intern_vit(vision)
        merged = vision.dim * vision.merge**2
        self.projector = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(merged, vision.projector_eps),
                hidden=nn.Linear(merged, config.und.dim),
                activation=nn.GELU(),
                output=nn.Linear(config.und.dim, config.und.dim),
            )
        )
        tokens = (vision.size // vision.patch // vision.merge) ** 2
        self.register_buffer("advance", torch.tensor([1] * tokens), persistent=False)
        self.register_buffer("offsets", torch.tensor([[0] * tokens]), persistent=False)

    def forward(self, frames: Float[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch view token dim"]:
        """Tokens of pictures in [0, 1]: through InternViT, four neighbours to one token, through the projector."""
        pixels = self.patchify(frames).to(self.text_embedding.weight.dtype)
        patches = self.vision(pixels.flatten(0, 1)).last_hidden_state[:, 1:]
        merge = self.sizes.merge
        shuffled = rearrange(
            patches,
            "(batch view) (rows y columns x) dim -> batch view (rows columns) (y x dim)",
            batch=frames.shape[0],
            rows=self.sizes.size // self.sizes.patch // merge,
            y=merge,
            x=merge,
        )
        return self.projector(shuffled)

    def patchify(
        self, frames: Float[Tensor, "batch view 3 height width"]
    ) -> Float[Tensor, "batch view 3 {self.sizes.size} {self.sizes.size}"]:
        """Pictures in [0, 1], resized bilinearly to the tower's square and normalised; the tower cuts the patches."""
        size = self.sizes.size
        images = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
        return normalised(images, self.sizes.mean, self.sizes.std).unflatten(0, frames.shape[:2])


def intern_vit(sizes: InternVLVision) -> nn.Module:
    """InternViT as InternVL3 has it, from `transformers`."""
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
