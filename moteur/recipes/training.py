"""One step of training as the paper does it: AdamW, a warmed-up and decaying rate, clipped gradients."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate over its peak: a linear climb over `warmup` steps, then half a cosine down to `final`.

    The paper post-trains with 2,000 warm-up steps and a final rate of a tenth (arXiv 2601.02456, Table 2).

    Attributes:
        steps: Length of the training.
        warmup: Steps of the climb.
        final: Rate of the last step, as a share of the peak.

    Examples:
        >>> schedule = Schedule(steps=100, warmup=10, final=0.1)
        >>> [round(schedule(step), 3) for step in (0, 9, 10, 99)]
        [0.1, 1.0, 1.0, 0.1]
    """

    steps: int
    warmup: int
    final: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.final <= 1:
            found = (self.steps, self.warmup, self.final)
            raise ValueError(f"steps, warmup, final: expected at least 1, at least 0, within [0, 1], got {found}")

    def __call__(self, step: int) -> float:
        """The share of the peak rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def adamw(module: nn.Module, *, rate: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95 and epsilon 1e-8 over the parameters that are not frozen (Table 2).

    Args:
        module: What to train.
        rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)


def train_step(
    optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], *, rate: float, clip: float = 1.0
) -> Float[Tensor, ""]:
    """Go one step down the gradient of `loss`; return the gradient's norm before clipping.

    Args:
        optimizer: Holds the parameters.
        loss: A scalar that depends on them.
        rate: Learning rate of this step.
        clip: Largest norm of the whole gradient.

    Raises:
        ValueError: If the gradient is not finite; parameters and optimiser are as they were.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    if not torch.isfinite(norm):
        raise ValueError(f"loss: expected one with a finite gradient, got a norm of {norm} at a loss of {loss}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm
