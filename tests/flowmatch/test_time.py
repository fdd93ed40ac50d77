"""Beta-distributed flow times against scipy's distribution, and time features against arithmetic with 50 digits."""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import special, stats

from moteur.flowmatch import BetaTime, LogitNormalTime, discretised
from moteur.flowmatch.time import time_features

SHAPES = [(1.5, 1.0), (1.0, 1.5), (1.0, 1.0), (0.5, 0.5), (2.0, 5.0), (0.4, 3.0), (80.0, 0.7), (1e3, 2e3)]
DRAWS = 50_000
# 0.999 Beta(1.5, 1) + 0.001 from seed 0, as drawn by version 0.1 in float64.
DRAWN = [
    *(0.09733875269165881, 0.4408783754173786, 0.6639671110653862),
    *(0.18532042485755618, 0.5018388978022582, 0.35266142371327636),
]


def generator_on(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_draws_follow_the_analytic_distribution(device: torch.device, alpha: float, beta: float, reverse: bool) -> None:
    times = BetaTime(alpha=alpha, beta=beta, scale=0.9, offset=0.02, reverse=reverse)
    drawn = times.sample((DRAWS,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    analytic = stats.beta(alpha, beta, loc=0.02, scale=0.9)
    assert stats.kstest(drawn, (lambda t: analytic.sf(1 - t)) if reverse else analytic.cdf).pvalue > 1e-3


def test_a_million_draws_cannot_be_told_from_the_analytic_distribution(device: torch.device) -> None:
    times = BetaTime(alpha=0.5, beta=0.5, scale=1.0, offset=0.0)
    drawn = times.sample((1_000_000,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    assert stats.kstest(drawn, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(1e-6, 1e-6), (1e-3, 1e-3), (1e-6, 3.0), (1e4, 1e-6), (1e4, 1e4)])
def test_extreme_shapes_keep_their_probabilities_and_stay_finite(
    device: torch.device, alpha: float, beta: float
) -> None:
    times = BetaTime(alpha=alpha, beta=beta, scale=1.0, offset=0.0)
    drawn = times.sample((DRAWS,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    assert np.isfinite(drawn).all()
    for point in (0.01, 0.4995, 0.5, 0.5005, 0.99):
        expected = special.betainc(alpha, beta, point)
        spread = np.sqrt(expected * (1 - expected) / DRAWS)
        assert abs((drawn <= point).mean() - expected) <= 4.5 * spread + 1e-9


@pytest.mark.parametrize(
    ("times", "analytic", "mean"),
    [
        (BetaTime.released(), lambda t: np.clip((t - 0.001) / 0.999, 0, 1) ** 1.5, 0.999 * 0.6 + 0.001),
        (BetaTime.paper(), lambda t: 1 - (1 - t) ** 1.5, 0.4),
    ],
)
def test_released_times_lie_near_noise_at_one_and_the_papers_near_data(
    device: torch.device, times: BetaTime, analytic: Callable[[np.ndarray], np.ndarray], mean: float
) -> None:
    drawn = times.sample((DRAWS,), generator=generator_on(device)).double().cpu().numpy()
    assert stats.kstest(drawn, analytic).pvalue > 1e-3
    assert drawn.mean() == pytest.approx(mean, abs=0.005)


def test_groots_times_are_those_of_its_formula_and_its_buckets_those_of_its_table() -> None:
    own = BetaTime.groot().sample((DRAWS,), generator=generator_on(torch.device("cpu")), dtype=torch.float64)
    # A draw of Beta(1.5, 1) is U^(2/3); the formula goes below 0 where the draw is above 0.999.
    uniform = 1 - torch.rand(DRAWS, generator=generator_on(torch.device("cpu")), dtype=torch.float64)
    theirs = (0.999 - uniform ** (1 / 1.5)) / 0.999
    assert (theirs < 0).any()
    torch.testing.assert_close(own, theirs.clamp(min=0), rtol=0, atol=1e-15)
    inside = ((theirs * 1000) % 1 - 0.5).abs() < 0.5 - 1e-9  # not on an edge, where a rounding decides
    table = (theirs * 1000).long()
    found = (discretised(own, buckets=1000) * 1000).round().long()
    assert torch.equal(found[inside], table[inside])


def test_a_clipped_interval_puts_what_leaves_it_at_its_ends(device: torch.device) -> None:
    times = BetaTime(1.0, 1.0, scale=2.0, offset=-0.5, clip=True).sample((DRAWS,), generator=generator_on(device))
    assert times.min() > 0
    assert times.max() < 1
    for end in (times < 1e-30, times > 1 - 1e-6):
        assert end.double().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.1, 0.5), (math.log(3), 1.7)])
def test_logit_normal_draws_follow_the_analytic_distribution(device: torch.device, mean: float, std: float) -> None:
    drawn = LogitNormalTime(mean, std).sample((DRAWS,), generator=generator_on(device), dtype=torch.float64).cpu()
    assert stats.kstest(special.logit(drawn.numpy()), stats.norm(mean, std).cdf).pvalue > 1e-3


def test_logit_normal_times_are_inside_repeat_by_seed_and_go_to_the_device(device: torch.device) -> None:
    times = LogitNormalTime(30.0, 10.0)
    drawn = times.sample((1000, 2), generator=generator_on(torch.device("cpu"), 3), device=device)
    assert drawn.dtype == torch.float32
    assert drawn.device.type == device.type
    assert ((drawn > 0) & (drawn < 1)).all()
    again = times.sample((1000, 2), generator=generator_on(torch.device("cpu"), 3))
    assert torch.equal(drawn.cpu(), again)


def test_a_shift_of_logit_normal_times_is_another_mean() -> None:
    plain, moved = (
        LogitNormalTime(mean).sample((100,), generator=generator_on(torch.device("cpu")), dtype=torch.float64)
        for mean in (0.2, 0.2 + math.log(3))
    )
    torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain), rtol=1e-13, atol=0)


def test_buckets_are_equal_parts_by_their_lower_ends(device: torch.device) -> None:
    time = torch.linspace(0, 1, 1001, dtype=torch.float64, device=device)
    found = discretised(time, buckets=8)
    expected = [math.floor(Fraction(index, 1000) * 8) / 8 for index in range(1001)]
    assert found.tolist() == expected
    with pytest.raises(ValueError, match="buckets: expected at least 1, got 0"):
        discretised(time, buckets=0)


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, math.inf)])
def test_a_logit_normal_that_is_none_is_named(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match=rf"mean, std: expected a finite mean .* got mean={mean}, std={std}"):
        LogitNormalTime(mean, std)


def test_the_released_times_of_a_seed_stay_what_they_were() -> None:
    own = BetaTime.released().sample((6,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(own, torch.tensor(DRAWN, dtype=torch.float64), rtol=0, atol=2**-52)


def test_reversed_times_are_one_minus_the_times(device: torch.device) -> None:
    for sizes in ({"alpha": 1.5, "beta": 1.0}, {"alpha": 2.0, "beta": 0.7}):
        forward, backward = (
            BetaTime(**sizes, reverse=reverse).sample((64,), generator=generator_on(device), dtype=torch.float64)
            for reverse in (False, True)
        )
        torch.testing.assert_close(backward, 1 - forward, rtol=0, atol=2**-52)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_every_time_is_strictly_inside_zero_and_one_in_every_dtype(
    device: torch.device, dtype: torch.dtype, reverse: bool
) -> None:
    for alpha, beta in [(1e-3, 1e-3), (1.0, 1e-3), (1e-3, 1.0), (1e4, 1.0), (1.5, 1.0)]:
        times = BetaTime(alpha=alpha, beta=beta, scale=1.0, offset=0.0, reverse=reverse)
        drawn = times.sample((20_000,), generator=generator_on(device), dtype=dtype)
        assert drawn.dtype == dtype
        assert ((drawn > 0) & (drawn < 1)).all()


def test_a_generator_in_the_same_state_gives_the_same_times_and_another_gives_others(device: torch.device) -> None:
    for times in (BetaTime.released(), BetaTime(alpha=2.5, beta=0.4)):
        first = times.sample((64,), generator=generator_on(device, 7), device=device)
        again = times.sample((64,), generator=generator_on(device, 7), device=device)
        other = times.sample((64,), generator=generator_on(device, 8), device=device)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_cpu_generator_gives_the_same_times_on_every_device(device: torch.device) -> None:
    times = BetaTime.released()
    home = times.sample((2, 3), generator=generator_on(torch.device("cpu")))
    away = times.sample((2, 3), generator=generator_on(torch.device("cpu")), device=device)
    assert away.device.type == device.type
    assert away.shape == (2, 3)
    assert torch.equal(home, away.cpu())


def test_a_generator_leaves_torchs_global_state_alone() -> None:
    before = torch.get_rng_state()
    BetaTime(alpha=2.0, beta=3.0).sample((8,), generator=generator_on(torch.device("cpu")))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [0.0, -1.5, float("nan"), float("inf"), 1e-7, 1e5])
def test_a_shape_out_of_range_is_named(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[1e-06, 10000\.0\], got"):
        BetaTime(alpha=wrong, beta=1.0)
    with pytest.raises(ValueError, match=r"beta: expected a number in \[1e-06, 10000\.0\], got"):
        BetaTime(alpha=1.0, beta=wrong)


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.001), (0.5, -0.1), (0.0, 0.5), (-0.5, 0.9), (float("nan"), 0.0), (0.5, float("nan"))]
)
def test_scale_and_offset_that_leave_the_unit_interval_are_named(scale: float, offset: float) -> None:
    with pytest.raises(ValueError, match=r"scale, offset: expected scale > 0 and .* inside \[0, 1\], got scale="):
        BetaTime(alpha=1.5, beta=1.0, scale=scale, offset=offset)


def test_even_a_clipped_interval_has_a_finite_place_and_a_width() -> None:
    for scale, offset in ((0.0, 0.5), (math.inf, 0.0), (1.0, math.nan), (1.0, -math.inf)):
        with pytest.raises(ValueError, match="scale, offset: expected scale > 0"):
            BetaTime(1.5, 1.0, scale=scale, offset=offset, clip=True)


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
    own, wide = (time_features(t, dim=64, min_period=4e-3, max_period=4.0) for t in (time, time.double()))
    assert torch.equal(own, wide)


def test_times_of_any_rank_get_their_features_one_by_one(device: torch.device) -> None:
    times = torch.linspace(0, 1, 6, device=device).reshape(2, 3)
    features = time_features(times, dim=8, min_period=4e-3, max_period=4.0)
    flat = time_features(times.flatten(), dim=8, min_period=4e-3, max_period=4.0)
    assert torch.equal(features, flat.reshape(2, 3, 8))
    assert torch.equal(time_features(times[1, 2], dim=8, min_period=4e-3, max_period=4.0), flat[5])
