"""Flow-matching loss over valid action elements."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from moteur.flowmatch.solvers import expect_floats


def flow_loss(
    predicted: Float[Tensor, "batch step action"],
    target: Float[Tensor, "batch step action"],
    *,
    valid_steps: Bool[Tensor, "batch step"] | None = None,
    valid_dims: Bool[Tensor, "batch action"] | None = None,
    valid_samples: Bool[Tensor, " batch"] | None = None,
    reduction: Literal["valid", "released"] = "valid",
) -> Float[Tensor, ""]:
    r"""Mean squared error between predicted and target velocity, over valid elements.

    $$L = \frac{\sum_{bij} m_{bij}\,(\hat v_{bij} - v_{bij})^2}{\sum_{bij} m_{bij}},\qquad
    m_{bij} = \text{sample}_b \wedge \text{step}_{bi} \wedge \text{dim}_{bj}$$

    Invalid elements do not contribute, whatever they hold (NaN and infinity included), and their gradient is exactly 0.
    A batch without valid elements gives a loss of 0 with a gradient of 0.

    With `reduction="released"` every step and dimension counts, padding included, as in the released InternVLA-A1 code;
    `valid_steps` and `valid_dims` have no effect. Samples without actions are excluded in both cases.

    The mean is over the elements of this call. To combine calls (devices, gradient accumulation) exactly, weight each
    by its number of valid elements.

    Args:
        predicted: Velocity predicted by the network.
        target: Velocity of the path, in the same clock.
        valid_steps: False for steps past the end of the episode (the negation of LeRobot's `action_is_pad`). None: all
            steps are valid.
        valid_dims: True for the action dimensions of the sample's robot. None: all dimensions are valid.
        valid_samples: False for a sample without actions, such as human video. None: all samples have actions.
        reduction: Elements that the mean is over: "valid" ones, or, as "released", padding as well.

    Returns:
        A scalar, in float32 for half-precision inputs.

    Raises:
        ValueError: The shape of `target` or of a mask does not fit `predicted`, a velocity is not floating point, a
            mask is not boolean, or the reduction is unknown.

    Examples:
        >>> predicted, target = torch.tensor([[[1.0, 9.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
        >>> steps, dims = torch.tensor([[True, False]]), torch.tensor([[True, False]])
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims)
        tensor(1.)
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims, reduction="released")
        tensor(61.)
    """
    expect_floats(predicted=predicted, target=target)
    batch, steps, actions = predicted.shape
    # Broadcasting would accept wrong shapes without an error.
    for name, tensor, shape in (
        ("target", target, (batch, steps, actions)),
        ("valid_steps", valid_steps, (batch, steps)),
        ("valid_dims", valid_dims, (batch, actions)),
        ("valid_samples", valid_samples, (batch,)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} to fit predicted, got {tuple(tensor.shape)}")
        if name != "target" and tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name}: expected torch.bool, got {tensor.dtype}")
    if reduction not in {"valid", "released"}:
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
    # Select instead of multiplying by the mask: 0 * NaN is NaN, in the value and in the gradient.
    squared = torch.where(counted, difference, 0).square()
    return squared.sum() / counted.sum().clamp(min=1)
