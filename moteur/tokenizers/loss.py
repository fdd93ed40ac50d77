"""The foresight loss: squared error of predicted latents over the cameras that exist."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def foresight_loss(
    predicted: Float[Tensor, "batch view channel height width"],
    target: Float[Tensor, "batch view channel height width"],
    view_valid: Bool[Tensor, "batch view"] | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared error over the elements of valid views.

    $L = \sum_{b,v} m_{bv} \|\hat x_{bv} - x_{bv}\|^2 / (CHW \sum_{b,v} m_{bv})$ with $m$ = `view_valid`.

    Views that are not valid may hold anything, NaN included: they add nothing to the value, and their gradient is
    exactly zero. With no valid view at all the loss is 0 and so is every gradient. Nothing depends on values on the
    host, so nothing waits for the device.

    Args:
        predicted: Predicted latents.
        target: Latents of the frame to predict; no gradient flows into them.
        view_valid: True where that sample has that camera, and the loss counts. Default: everywhere.

    Returns:
        A scalar, in float32 for half-precision inputs, since squares add up beyond their range.

    Raises:
        ValueError: Shapes that do not fit together.

    >>> foresight_loss(torch.ones(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1), torch.tensor([[True, False]])).item()
    1.0
    """
    if predicted.shape != target.shape:
        raise ValueError(f"target: expected the shape of predicted {tuple(predicted.shape)}, got {tuple(target.shape)}")
    dtype = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    error = predicted.to(dtype) - target.detach().to(dtype)
    if view_valid is None:
        return error.square().mean()
    if view_valid.dtype != torch.bool or view_valid.shape != predicted.shape[:2]:
        raise ValueError(
            f"view_valid: expected torch.bool of shape {tuple(predicted.shape[:2])}, "
            f"got {view_valid.dtype} of {tuple(view_valid.shape)}"
        )
    # The error is replaced, not multiplied by zero: zero times NaN would be NaN, here and in the gradient.
    error = torch.where(view_valid[:, :, None, None, None], error, 0.0)
    elements = view_valid.sum() * predicted[0, 0].numel()
    return error.square().sum() / elements.clamp(min=1)
