"""Flow-matching loss over valid action elements, and means of losses over many processes."""

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.distributed import ProcessGroup

from moteur.flowmatch.solvers import expect_floats

Parts = tuple[Float[Tensor, "*loss"], Int[Tensor, "*loss"]]
"""A sum of squared errors, and the number of elements it is over: total / count is their mean."""


@overload
def flow_loss(
    predicted: Float[Tensor, "batch *axes action"],
    target: Float[Tensor, "batch *axes action"],
    *,
    valid: Bool[Tensor, "batch *axes action"] | None = ...,
    valid_steps: Bool[Tensor, " batch *axes"] | None = ...,
    valid_dims: Bool[Tensor, "batch action"] | None = ...,
    valid_samples: Bool[Tensor, " batch"] | None = ...,
    reduction: Literal["parts"],
) -> Parts: ...


@overload
def flow_loss(
    predicted: Float[Tensor, "batch *axes action"],
    target: Float[Tensor, "batch *axes action"],
    *,
    valid: Bool[Tensor, "batch *axes action"] | None = ...,
    valid_steps: Bool[Tensor, " batch *axes"] | None = ...,
    valid_dims: Bool[Tensor, "batch action"] | None = ...,
    valid_samples: Bool[Tensor, " batch"] | None = ...,
    reduction: Literal["valid", "released", "sample", "none"] = ...,
) -> Float[Tensor, "..."]: ...


def flow_loss(
    predicted: Float[Tensor, "batch *axes action"],
    target: Float[Tensor, "batch *axes action"],
    *,
    valid: Bool[Tensor, "batch *axes action"] | None = None,
    valid_steps: Bool[Tensor, " batch *axes"] | None = None,
    valid_dims: Bool[Tensor, "batch action"] | None = None,
    valid_samples: Bool[Tensor, " batch"] | None = None,
    reduction: Literal["valid", "released", "parts", "sample", "none"] = "valid",
) -> Float[Tensor, "..."] | Parts:
    r"""Mean squared error between predicted and target velocity, over valid elements.

    $$L = \frac{\sum_{bij} m_{bij}\,(\hat v_{bij} - v_{bij})^2}{\sum_{bij} m_{bij}},\qquad
    m_{bij} = \text{valid}_{bij} \wedge \text{sample}_b \wedge \text{step}_{bi} \wedge \text{dim}_{bj}$$

    Velocities are (batch, step, action), or have any other number of axes between the first and the last. Invalid
    elements do not contribute, whatever they hold (NaN and infinity included), and their gradient is exactly 0. A batch
    without valid elements gives a loss of 0 with a gradient of 0.

    | `reduction` | result |
    |---|---|
    | `"valid"` | mean over valid elements |
    | `"released"` | mean over padding as well; see below |
    | `"parts"` | the sum over valid elements and their number, for `mean_over` |
    | `"sample"` | (batch,): the mean over each sample's valid elements, 0 for a sample without |
    | `"none"` | every squared error, in the shape of `predicted`, 0 where invalid |

    With `"released"` every step and dimension counts, padding included, as in the released InternVLA-A1 code;
    `valid_steps` and `valid_dims` have no effect. Samples without actions are excluded all the same.

    A mean is over the elements of this call. Where processes or micro-batches have different numbers of valid elements,
    a mean of their means weighs samples wrongly: take `"parts"` and `mean_over`.

    Args:
        predicted: Velocity predicted by the network.
        target: Velocity of the path, in the same clock.
        valid: True for every element that counts. None: the other masks decide.
        valid_steps: False for steps past the end of the episode (the negation of LeRobot's `action_is_pad`). None: all
            steps are valid.
        valid_dims: True for the action dimensions of the sample's robot. None: all dimensions are valid.
        valid_samples: False for a sample without actions, such as human video. None: all samples have actions.
        reduction: What to return; see the table.

    Returns:
        A scalar unless the table says otherwise, in float32 for half-precision inputs.

    Raises:
        ValueError: `predicted` has fewer than two axes, the shape of `target` or of a mask does not fit it, a velocity
            is not floating point, a mask is not boolean, or the reduction is unknown.

    Examples:
        >>> predicted, target = torch.tensor([[[1.0, 9.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
        >>> steps, dims = torch.tensor([[True, False]]), torch.tensor([[True, False]])
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims)
        tensor(1.)
        >>> flow_loss(predicted, target, valid_steps=steps, valid_dims=dims, reduction="released")
        tensor(61.)
    """
    expect_floats(predicted=predicted, target=target)
    shape = tuple(predicted.shape)
    if len(shape) < 2:  # noqa: PLR2004
        raise ValueError(f"predicted: expected at least the axes (batch, action), got shape {shape}")
    batch, axes, actions = shape[0], [1] * (len(shape) - 2), shape[-1]
    # Broadcasting would accept wrong shapes without an error.
    for name, tensor, expected in (
        ("target", target, shape),
        ("valid", valid, shape),
        ("valid_steps", valid_steps, shape[:-1]),
        ("valid_dims", valid_dims, (batch, actions)),
        ("valid_samples", valid_samples, (batch,)),
    ):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name}: expected shape {expected} to fit predicted, got {tuple(tensor.shape)}")
        if name != "target" and tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name}: expected torch.bool, got {tensor.dtype}")
    if reduction not in {"valid", "released", "parts", "sample", "none"}:
        known = "'valid', 'released', 'parts', 'sample' or 'none'"
        raise ValueError(f"reduction: expected {known}, got {reduction!r}")

    if reduction == "released":
        valid_steps = valid_dims = None
    counted = torch.ones_like(predicted, dtype=torch.bool)
    for mask, fitting in (
        (valid, shape),
        (valid_steps, (*shape[:-1], 1)),
        (valid_dims, (batch, *axes, actions)),
        (valid_samples, (batch, *axes, 1)),
    ):
        counted = counted if mask is None else counted & mask.reshape(fitting)

    wide = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    difference = predicted.to(wide) - target.to(wide)
    # Select instead of multiplying by the mask: 0 * NaN is NaN, in the value and in the gradient.
    squared = torch.where(counted, difference, 0).square()
    if reduction == "none":
        return squared
    if reduction == "sample":
        return squared.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)
    total, count = squared.sum(), counted.sum()
    return (total, count) if reduction == "parts" else total / count.clamp(min=1)


def mean_over(
    parts: Parts,
    *,
    count: Real[Tensor, "*loss"] | None = None,
    group: ProcessGroup | None = None,
) -> Float[Tensor, "*loss"]:
    r"""Loss of this process whose average over all processes is the mean over all their valid elements.

    $$L_r = \frac{T_r}{\bar n},\qquad \bar n = \frac{1}{R}\sum_r n_r,\qquad
    \frac{1}{R}\sum_r L_r = \frac{\sum_r T_r}{\sum_r n_r}$$

    with total $T_r$ and count $n_r$ of process r of R. Data parallelism (DDP, FSDP) averages gradients over processes,
    so that every element weighs the same wherever it lies; a mean of $T_r / n_r$ would weigh an element more the fewer
    valid ones its process has. Without a process group it is $T / n$.

    All processes of the group must call it, in the same order. What a single process returns is no mean over its own
    elements: to log a loss, average it over the processes.

    Gradient accumulation: give `count`, the `mean_count` of all micro-batches of the step, and divide the loss by their
    number, as for a mean of means.

    Args:
        parts: Sum and number of elements, such as `flow_loss(..., reduction="parts")` gives.
        count: Number of elements to divide by. None: the `mean_count` of the parts.
        group: Processes to combine; None for all, if torch.distributed is initialised.

    Source:
        The exact mean of token losses under accumulation and data parallelism, as trainers of language models have it.

    Examples:
        >>> parts = torch.tensor(6.0), torch.tensor(3)
        >>> mean_over(parts)
        tensor(2.)
        >>> mean_over(parts, count=mean_count(torch.tensor(3), torch.tensor(1)))  # with a micro-batch of one element
        tensor(3.)
    """
    total, own = parts
    return total / (mean_count(own, group=group) if count is None else count)


def mean_count(*counts: Int[Tensor, "*loss"], group: ProcessGroup | None = None) -> Float[Tensor, "*loss"]:
    """Mean number of elements of a micro-batch, over all of them and over all processes; see `mean_over`.

    Counts come from masks, so they are known before the first forward pass of a step. Where nobody has an element, it
    is as if there were one in all. One collective operation, for all losses of the counts at once.

    Args:
        counts: Number of valid elements of each micro-batch of this process, as many in every process.
        group: Processes to combine; None for all, if torch.distributed is initialised.

    Examples:
        >>> mean_count(torch.tensor(3), torch.tensor(0), torch.tensor(0))
        tensor(1.)
    """
    total, processes = torch.stack(counts).sum(dim=0), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total, group=group)
        processes = torch.distributed.get_world_size(group)
    return total.clamp(min=1) / (processes * len(counts))
