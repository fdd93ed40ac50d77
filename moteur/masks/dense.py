"""The rule as a tensor with one entry for each query and key."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moteur.masks.rule import Positions, each, visible


def dense_mask(queries: Positions, keys: Positions) -> Bool[Tensor, "batch query key"]:
    """True where a query may attend to a key, from positions of shape (batch, query) and (batch, key).

    Only integers and booleans are compared, so the mask is exact at any length.
    """
    return visible(each(lambda held: held[:, :, None], queries), each(lambda held: held[:, None, :], keys))


def dense_bias(mask: Bool[Tensor, "batch query key"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
    """0 where `mask` is True and minus infinity elsewhere, with an axis for the heads.

    Raises:
        ValueError: if `dtype` is not a floating type.

    Example:
        >>> dense_bias(torch.tensor([[[True, False]]]), torch.float16)
        tensor([[[[0., -inf]]]], dtype=torch.float16)
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type, got {dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)[:, None]
