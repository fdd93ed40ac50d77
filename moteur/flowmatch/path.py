"""The straight path between a noise sample and a data sample, and what its velocity tells."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch.clocks import Clock, check_clock


def interpolate(
    noise: Float[Tensor, "batch ..."],
    data: Float[Tensor, "batch ..."],
    time: Float[Tensor, " batch"] | float,
    *,
    clock: Clock = "data",
) -> Float[Tensor, "batch ..."]:
    r"""Point of the straight path at `time`.

    $$a^\tau = (1-\tau)\,\epsilon + \tau\,a$$

    with $\epsilon$ = `noise`, $a$ = `data` and $\tau$ = `time` (or 1 - `time` with `clock="noise"`).

    Args:
        noise: Sample at the noise end.
        data: Sample at the data end.
        time: One time for each sample of the batch, or one Python float for all of them; in [0, 1]. Only a Python
            float is checked: reading a tensor's values would stall an accelerator.
        clock: Which end `time` = 1 means.

    Returns:
        The point, in the dtype of `data`. Weights are applied in the widest dtype among the arguments and rounded
        once, so that a time close to 1 keeps its meaning in bfloat16.

    Raises:
        ValueError: Shapes that do not fit, a float outside [0, 1], an unknown clock.

    Source:
        InternVLA-A1 paper, section on flow matching; rectified flow, Liu et al., arXiv 2209.03003.

    Examples:
        >>> noise, data = torch.zeros(1, 2), torch.tensor([[4.0, 8.0]])
        >>> interpolate(noise, data, 0.25)
        tensor([[1., 2.]])
        >>> interpolate(noise, data, 0.25, clock="noise")
        tensor([[3., 6.]])
    """
    _check_same_shape("noise", noise, "data", data)
    toward_noise, toward_data = _weights(time, noise, clock)
    return (toward_noise * noise + toward_data * data).to(data.dtype)


def velocity_target(
    noise: Float[Tensor, "batch ..."], data: Float[Tensor, "batch ..."], *, clock: Clock = "data"
) -> Float[Tensor, "batch ..."]:
    r"""Velocity of the straight path, the same at all of its points: $da^\tau/d\tau = a - \epsilon$.

    With `clock="noise"` it is the derivative with respect to s = 1 - tau, the opposite sign: this is what the network
    of the released InternVLA-A1 checkpoint was trained to give.

    Raises:
        ValueError: Shapes that do not fit, an unknown clock.

    Examples:
        >>> velocity_target(torch.tensor([[1.0]]), torch.tensor([[4.0]]))
        tensor([[3.]])
    """
    _check_same_shape("noise", noise, "data", data)
    check_clock(clock)
    return data - noise if clock == "data" else noise - data


def data_from_velocity(
    x: Float[Tensor, "batch ..."],
    velocity: Float[Tensor, "batch ..."],
    time: Float[Tensor, " batch"] | float,
    *,
    clock: Clock = "data",
) -> Float[Tensor, "batch ..."]:
    r"""Data end of the straight line through `x` with slope `velocity`: $a = a^\tau + (1-\tau)\,v$.

    Args:
        x: Point of the path at `time`.
        velocity: Slope there, a derivative with respect to the time of the same `clock`.
        time: One time for each sample, or one Python float; in [0, 1].
        clock: The clock of both `time` and `velocity`.

    Returns:
        The data that a perfectly straight path would reach, in the dtype of `x`.

    Raises:
        ValueError: Shapes that do not fit, a float outside [0, 1], an unknown clock.

    Examples:
        >>> data_from_velocity(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]]), 0.25)
        tensor([[4., 8.]])
    """
    _check_same_shape("x", x, "velocity", velocity)
    toward_noise, _ = _weights(time, x, clock)
    sign = 1 if clock == "data" else -1
    return (x + sign * toward_noise * velocity).to(x.dtype)


def noise_from_velocity(
    x: Float[Tensor, "batch ..."],
    velocity: Float[Tensor, "batch ..."],
    time: Float[Tensor, " batch"] | float,
    *,
    clock: Clock = "data",
) -> Float[Tensor, "batch ..."]:
    r"""Noise end of the straight line through `x` with slope `velocity`: $\epsilon = a^\tau - \tau\,v$.

    Arguments, result and errors as in `data_from_velocity`.

    Examples:
        >>> noise_from_velocity(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]]), 0.25)
        tensor([[0., 0.]])
    """
    _check_same_shape("x", x, "velocity", velocity)
    _, toward_data = _weights(time, x, clock)
    sign = 1 if clock == "data" else -1
    return (x - sign * toward_data * velocity).to(x.dtype)


def _weights(time: Tensor | float, like: Tensor, clock: Clock) -> tuple[Tensor | float, Tensor | float]:
    """Weights of the noise end and of the data end, shaped to multiply `like`."""
    check_clock(clock)
    if isinstance(time, Tensor):
        if time.shape != like.shape[:1]:
            raise ValueError(
                f"time: expected one value for each of the {like.shape[0]} samples, shape ({like.shape[0]},), "
                f"got shape {tuple(time.shape)}"
            )
        # A batch of scalars scales tensors of any rank: only the number of trailing axes is added.
        time = time.reshape(-1, *(1,) * (like.ndim - 1))
        time = time.to(torch.promote_types(time.dtype, like.dtype))
    elif not (math.isfinite(time) and 0 <= time <= 1):
        raise ValueError(f"time: expected a number in [0, 1], got {time}")
    return (1 - time, time) if clock == "data" else (time, 1 - time)


def _check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{second_name}: expected the shape of {first_name}, {tuple(first.shape)}, got {tuple(second.shape)}"
        )
