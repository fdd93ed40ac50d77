"""What vision towers share: a pre-norm block, and images normalised channel by channel."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moteur.mot import rotate


class VisionBlock(nn.Module):
    """One pre-norm block of a tower, with biases; every image attends to itself.

    Args:
        dim: Width of a patch.
        heads: Attention heads; each has `dim / heads` features.
        mlp_dim: Width inside the feed-forward network, which has a GELU in its tanh approximation.
        norm_eps: ε of both layer norms.
    """

    def __init__(self, *, dim: int, heads: int, mlp_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                linear_fc1=nn.Linear(dim, mlp_dim),
                activation=nn.GELU("tanh"),
                linear_fc2=nn.Linear(mlp_dim, dim),
            )
        )

    def forward(
        self, x: Float[Tensor, "image patch dim"], rotation: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "image patch dim"]:
        """Carry the patches of each image through the block; queries and keys are rotated if there is a rotation."""
        heads = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3 * self.heads, -1))
        turned, value = heads.split([2 * self.heads, self.heads], dim=2)
        if rotation is not None:
            turned = rotate(turned, rotation)
        query, key = turned.chunk(2, dim=2)
        attended = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        x = x + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def normalised(
    images: Float[Tensor, "image 3 height width"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "image 3 height width"]:
    """Images less the mean of each channel, over its standard deviation."""
    # Channel by channel: a tensor of the constants would be copied to the device in every call.
    return torch.stack([(images[:, channel] - mean[channel]) / std[channel] for channel in range(3)], dim=1)
