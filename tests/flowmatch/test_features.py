"""Time features against arithmetic with thirty digits."""

import math
from decimal import Decimal, getcontext

import pytest
import torch

from moteur.flowmatch import time_features


def slow_features(time: float, dim: int, min_period: float, max_period: float) -> list[float]:
    """The definition in 50-digit arithmetic, angle reduced to one turn before the sine."""
    getcontext().prec = 50
    low, high, count = Decimal(min_period), Decimal(max_period), dim // 2
    turns = []
    for index in range(count):
        exponent = Decimal(index) / Decimal(max(count - 1, 1))
        period = low * (exponent * (high / low).ln()).exp()
        turns.append(float((Decimal(time) / period) % 1))
    return [math.sin(2 * math.pi * t) for t in turns] + [math.cos(2 * math.pi * t) for t in turns]


@pytest.mark.parametrize(
    ("dim", "periods"), [(48, (4e-3, 4.0)), (1024, (4e-3, 4.0)), (2, (0.5, 2.0)), (6, (1e-3, 10.0))]
)
def test_features_equal_fifty_digit_arithmetic_to_float32_rounding(
    device: torch.device, dim: int, periods: tuple[float, float]
) -> None:
    times = [0.0, 1.0, 0.001, 1 / 3, 0.5, 0.777, 1 - 2**-24]
    own = time_features(
        torch.tensor(times, dtype=torch.float64, device=device), dim=dim, min_period=periods[0], max_period=periods[1]
    )
    exact = torch.tensor([slow_features(time, dim, *periods) for time in times], dtype=torch.float64)
    assert own.dtype == torch.float32
    torch.testing.assert_close(own.cpu().double(), exact, rtol=2**-23, atol=2**-25 + 1e-11)


def test_sines_come_first_then_cosines_from_the_shortest_period_to_the_longest(device: torch.device) -> None:
    quarter = time_features(torch.tensor([1.0], device=device), dim=4, min_period=2.0, max_period=4.0)
    torch.testing.assert_close(quarter.cpu(), torch.tensor([[0.0, 1.0, -1.0, 0.0]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_of_time_is_widened_before_the_angle(device: torch.device, dtype: torch.dtype) -> None:
    time = torch.tensor([0.25, 0.75], dtype=dtype, device=device)
    assert torch.equal(time_features(time, dim=64), time_features(time.double(), dim=64))


def test_mistakes_are_named_with_both_numbers() -> None:
    time = torch.zeros(1)
    for dim in (0, -2, 7):
        with pytest.raises(ValueError, match=f"dim: expected a positive even number .*, got {dim}"):
            time_features(time, dim=dim)
    for low, high in [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))]:
        with pytest.raises(
            ValueError, match="min_period, max_period: expected 0 < min_period < max_period, both finite"
        ):
            time_features(time, dim=4, min_period=low, max_period=high)
