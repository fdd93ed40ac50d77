"""SigLIP, the vision tower of PaliGemma and with it of π0 and π0.5, and the projector to the language model's width."""

from jaxtyping import Float
from torch import Tensor, nn

from moteur.recipes.backbones.vision import VisionBlock


class PaliGemma(nn.Module):
    """Pictures to image tokens, and the table of the prompt's words.

    Nothing stands before, between or after the tokens of a view, and nothing is scaled here: π multiplies the words by
    √dim, and leaves image tokens alone. Source: "PaliGemma", arXiv 2407.07726.

    Args:
        vision: The tower.
        dim: Width of the tokens, that of the language model.
        vocabulary: Rows of the table.

    Attributes:
        text_embedding: Embedding of the prompt.
    """

    def __init__(self, vision: "SigLIP", *, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.text_embedding = nn.Embedding(vocabulary, dim)
        self.vision = vision
        self.projector = nn.Linear(vision.dim, dim)

    def forward(self, frames: Float[Tensor, "batch view 3 side side"]) -> Float[Tensor, "batch view token dim"]:
        """Tokens of square pictures in [0, 1], as large as the tower's."""
        features = self.vision(frames.flatten(0, 1) * 2 - 1)
        return self.projector(features.to(self.projector.weight.dtype)).unflatten(0, frames.shape[:2])


class SigLIP(nn.Module):
    """Patches of square images through pre-norm blocks, with a learned position for each; no class token, no pooling.

    Source: "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.

    Args:
        dim: Width of a patch.
        depth: Blocks.
        heads: Attention heads.
        mlp_dim: Width inside the feed-forward network.
        patch: Pixels along the side of a patch.
        side: Pixels along the side of an image, a multiple of `patch`.
        norm_eps: ε of the layer norms.

    Examples:
        >>> import torch
        >>> tower = SigLIP(dim=24, depth=2, heads=3, mlp_dim=40, patch=14, side=28, norm_eps=1e-6)
        >>> tower(torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 4, 24])
    """

    def __init__(
        self, *, dim: int, depth: int, heads: int, mlp_dim: int, patch: int, side: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.positions = nn.Embedding((side // patch) ** 2, dim)
        self.blocks = nn.ModuleList(
            VisionBlock(dim=dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from a normal distribution of standard deviation 0.02; biases are zero, gains one."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, images: Float[Tensor, "image 3 {self.side} {self.side}"]
    ) -> Float[Tensor, "image patch {self.dim}"]:
        """Features of each patch, row by row.

        Args:
            images: Pixels in [-1, 1].
        """
        patches = self.patches(images.to(self.patches.weight.dtype)).flatten(2).mT
        # Patches and positions may be kept wider than the blocks, as the released half-precision models do.
        x = (patches + self.positions.weight).to(self.norm.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
