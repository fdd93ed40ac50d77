"""Flow-matching loss that counts what is real."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["valid", "released"]
"""What the mean is over: `"valid"` elements only, or, as in the released code, every element of a sample."""


def flow_loss(
    predicted: Float[Tensor, "batch step action"],
    target: Float[Tensor, "batch step action"],
    *,
    valid_steps: Bool[Tensor, "batch step"] | None = None,
    valid_dims: Bool[Tensor, "batch action"] | None = None,
    valid_samples: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "valid",
) -> Float[Tensor, ""]:
    r"""Mean squared error between two velocities, over valid elements.

    $$L = \frac{\sum_{bij} m_{bij}\,(\hat v_{bij} - v_{bij})^2}{\sum_{bij} m_{bij}},\qquad
    m_{bij} = \text{sample}_b \wedge \text{step}_{bi} \wedge \text{dim}_{bj}$$

    An element with m = 0 contributes nothing, whatever it holds (NaN and infinity included), and its gradient is
    exactly 0. A batch without a valid element gives 0 with a gradient of 0.

    With `reduction="released"` every step and every dimension counts, padding included, as in the released InternVLA-A1
    code; `valid_steps` and `valid_dims` are then without effect. Samples without actions stay excluded, because the
    number that their actions hold means nothing.

    The mean is over the elements of this call. Where a batch is cut into pieces (devices, accumulation), pieces with
    fewer valid elements weigh as much as others: combine them by their element counts if that matters.

    Args:
        predicted: The network's velocity.
        target: `velocity_target` of the same clock.
        valid_steps: True where the action is real; False where a chunk runs past the end of its episode (the negation
            of LeRobot's `action_is_pad`). None: all real.
        valid_dims: True for the dimensions that this sample's robot has. None: all.
        valid_samples: False for a sample without actions, such as human video. None: all have actions.
        reduction: What the mean is over.

    Returns:
        A scalar, in float32 for half-precision inputs.

    Raises:
        ValueError: Shapes that do not fit `predicted`, a mask that is not boolean, an unknown reduction.

    Examples:
        >>> predicted, target = torch.tensor([[[1.0, 9.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
        >>> steps, dims = torch.tensor([[True, False]]), torch.tensor([[True, False]])
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims)
        tensor(1.)
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims, reduction="released")
        tensor(61.)
    """
    batch, steps, actions = predicted.shape
    _check_shape("target", target, (batch, steps, actions))
    _check_mask("valid_steps", valid_steps, (batch, steps))
    _check_mask("valid_dims", valid_dims, (batch, actions))
    _check_mask("valid_samples", valid_samples, (batch,))
    if reduction not in ("valid", "released"):
        raise ValueError(f"reduction: expected 'valid' or 'released', got {reduction!r}")

    counted = torch.ones_like(predicted, dtype=torch.bool)
    if valid_samples is not None:
        counted = counted & rearrange(valid_samples, "batch -> batch 1 1")
    if reduction == "valid" and valid_steps is not None:
        counted = counted & rearrange(valid_steps, "batch step -> batch step 1")
    if reduction == "valid" and valid_dims is not None:
        counted = counted & rearrange(valid_dims, "batch action -> batch 1 action")

    wide = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    difference = predicted.to(wide) - target.to(wide)
    # Selecting, not multiplying by the mask: 0 * NaN is NaN, in the value and in the gradient.
    squared = torch.where(counted, difference, 0).square()
    return squared.sum() / counted.sum().clamp(min=1)


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} to fit predicted, got {tuple(tensor.shape)}")


def _check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    _check_shape(name, mask, shape)
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected dtype torch.bool, got {mask.dtype}")
