"""InternVL3, the understanding backbone of the 2B variant: InternViT, projector, text embedding, plain positions."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moteur.optional import require
from moteur.recipes.backbones.qwen3_vl import normalised
from moteur.recipes.backbones.stream import Stream, understanding_stream
from moteur.recipes.config import InternVLAA1Config, InternVLVision


class InternVL3(nn.Module):
    """Pictures and an instruction to the understanding stream.

    The image tokens of every view, one view after another with nothing between them; then the instruction,
    right-padded, its embeddings multiplied by `config.text_scale` (√hidden, as the released code computes; InternVL3
    itself does not scale). The position of a valid token is the number of valid ones before it.

    Source: "InternVL3", arXiv 2504.10479, for the tower and the projector; the InternVLA-A1 paper for the stream.
    """

    advance: Tensor
    offsets: Tensor

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        vision = config.vision
        assert isinstance(vision, InternVLVision)
        self.sizes, self.text_scale = vision, config.text_scale
        self.text_embedding = nn.Embedding(config.vocabulary, config.und.dim)
        self.vision = intern_vit(vision)
        self.projector = Projector(
            vision_dim=vision.dim * vision.merge**2, dim=config.und.dim, eps=vision.projector_eps
        )
        tokens = (vision.size // vision.patch // vision.merge) ** 2
        self.register_buffer("advance", torch.tensor([1] * tokens), persistent=False)
        self.register_buffer("offsets", torch.tensor([[0] * tokens]), persistent=False)

    def forward(
        self,
        frames: Float[Tensor, "batch view 3 height width"],
        instruction: Int[Tensor, "batch text"],
        *,
        attention_mask: Bool[Tensor, "batch text"] | None,
        view_valid: Bool[Tensor, "batch view"] | None,
    ) -> Stream:
        """The understanding stream.

        Args:
            frames: Pictures of the present, in [0, 1].
            instruction: Token ids, right-padded.
            attention_mask: False on padding; None means that there is none.
            view_valid: False for missing cameras; None means that all are there.
        """
        images = self.images(self.patchify(frames).to(self.text_embedding.weight.dtype))
        return understanding_stream(
            images,
            self.text_embedding(instruction) * self.text_scale,
            view_valid=view_valid,
            attention_mask=attention_mask,
            advance=self.advance,
            offsets=self.offsets,
        )

    def patchify(
        self, frames: Float[Tensor, "batch view 3 height width"]
    ) -> Float[Tensor, "batch view 3 {self.sizes.size} {self.sizes.size}"]:
        """Pictures in [0, 1], resized bilinearly to the tower's square and normalised; the tower cuts the patches."""
        size = self.sizes.size
        images = F.interpolate(frames.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
        return normalised(images, self.sizes.mean, self.sizes.std).unflatten(0, frames.shape[:2])

    def images(self, pixels: Float[Tensor, "batch view 3 size size"]) -> Float[Tensor, "batch view token dim"]:
        """Image tokens: pixels through InternViT, four neighbours to one token, through the projector."""
        batch, views = pixels.shape[:2]
        if not views:  # InternViT cannot take an empty batch
            return self.text_embedding.weight.new_zeros(
                batch, 0, self.advance.shape[0], self.projector.output.out_features
            )
        patches = self.vision(pixels.flatten(0, 1)).last_hidden_state[:, 1:]
        merge = self.sizes.merge
        shuffled = rearrange(
            patches,
            "(batch view) (rows y columns x) dim -> batch view (rows columns) (y x dim)",
            batch=batch,
            rows=self.sizes.size // self.sizes.patch // merge,
            y=merge,
            x=merge,
        )
        return self.projector(shuffled)


class Projector(nn.Module):
    """From the vision tower's width to the understanding expert's: layer norm, linear, GELU, linear.

    Args:
        vision_dim: Width of a merged image token.
        dim: Width of the understanding expert.
        eps: Epsilon of the layer norm.
    """

    def __init__(self, *, vision_dim: int, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_dim, eps)
        self.hidden = nn.Linear(vision_dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "*lead vision_dim"]) -> Float[Tensor, "*lead dim"]:
        """Image tokens as the understanding expert reads them."""
        return self.output(F.gelu(self.hidden(self.norm(tokens))))


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
