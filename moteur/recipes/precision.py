"""The number formats of the released runs."""

import re

import torch
from torch import nn

_KEPT_IN_FLOAT32 = re.compile(
    r"mot\.experts\.\w+\.layers\.\d+\.(attention_norm|mlp_norm)\.|mot\.experts\.und\.norm\.|action\.action_out\."
)


def released_dtype(name: str) -> torch.dtype:
    """What the released runs hold one of our parameters in."""
    return torch.float32 if _KEPT_IN_FLOAT32.match(name) else torch.bfloat16


def use_released_precision(model: nn.Module) -> nn.Module:
    """Turn a model's weights into what the released runs hold: bfloat16, and float32 where it matters most.

    The layer norms of every expert, the final norm of `und` and the action read-out stay in float32. Buffers, such as
    the rotary frequencies of the vision tower, are left as they are.

    Args:
        model: An `InternVLAA1`; changed in place.

    Returns:
        The same model.
    """
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(released_dtype(name))
    return model
