"""Beta-distributed flow times against scipy's analytic distribution."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats

from moteur.flowmatch import BetaTime, Clock
from moteur.flowmatch.precision import float64_device

SHAPES = [(1.5, 1.0), (1.0, 1.5), (1.0, 1.0), (0.5, 0.5), (2.0, 5.0), (0.4, 3.0), (80.0, 0.7), (1e3, 2e3)]
DRAWS = 50_000


def generator_on(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize(("alpha", "beta"), SHAPES)
@pytest.mark.parametrize("clock", ["data", "noise"])
def test_draws_follow_the_analytic_distribution(device: torch.device, alpha: float, beta: float, clock: Clock) -> None:
    times = BetaTime(alpha=alpha, beta=beta, scale=0.9, offset=0.05, clock=clock)
    tau = times.sample((DRAWS,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    own = stats.beta(alpha, beta, loc=0.05, scale=0.9)
    analytic = own.cdf if clock == "data" else (lambda x: own.sf(1 - x))
    assert stats.kstest(tau, analytic).pvalue > 1e-3


def test_a_million_draws_cannot_tell_the_rejection_step_from_the_analytic_distribution(device: torch.device) -> None:
    times = BetaTime(alpha=0.5, beta=0.5, scale=1.0, offset=0.0)
    tau = times.sample((1_000_000,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    assert stats.kstest(tau, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("alpha", "beta"), [(1e-6, 1e-6), (1e-3, 1e-3), (1e-6, 3.0), (1e4, 1e-6), (1e4, 1e4)])
def test_extreme_shapes_keep_their_probabilities_and_stay_finite(
    device: torch.device, alpha: float, beta: float
) -> None:
    times = BetaTime(alpha=alpha, beta=beta, scale=1.0, offset=0.0)
    tau = times.sample((DRAWS,), generator=generator_on(device), dtype=torch.float64).cpu().numpy()
    assert np.isfinite(tau).all()
    for point in (0.01, 0.4995, 0.5, 0.5005, 0.99):
        expected = special.betainc(alpha, beta, point)
        spread = np.sqrt(expected * (1 - expected) / DRAWS)
        assert abs((tau <= point).mean() - expected) <= 4.5 * spread + 1e-9


@pytest.mark.parametrize(
    ("times", "analytic"),
    [
        (BetaTime.released(), lambda tau: 1 - np.clip((1 - tau - 0.001) / 0.999, 0, 1) ** 1.5),
        (BetaTime.paper(), lambda tau: tau**1.5),
    ],
)
def test_the_two_presets_are_the_released_codes_and_the_literal_papers(
    device: torch.device, times: BetaTime, analytic: Callable[[np.ndarray], np.ndarray]
) -> None:
    tau = times.sample((DRAWS,), generator=generator_on(device)).double().cpu().numpy()
    assert stats.kstest(tau, analytic).pvalue > 1e-3
    grid = torch.linspace(0, 1, 101, dtype=torch.float64, device=device)
    torch.testing.assert_close(
        times.cdf(grid).cpu(), torch.from_numpy(analytic(grid.cpu().numpy())), rtol=0, atol=1e-14
    )


def test_released_times_lie_near_noise_and_the_papers_near_data(device: torch.device) -> None:
    released = BetaTime.released().sample((DRAWS,), generator=generator_on(device))
    paper = BetaTime.paper().sample((DRAWS,), generator=generator_on(device))
    assert BetaTime.released().mean == pytest.approx(0.999 * 0.4)
    assert BetaTime.paper().mean == pytest.approx(0.6)
    assert released.mean().item() == pytest.approx(0.3996, abs=0.005)
    assert paper.mean().item() == pytest.approx(0.6, abs=0.005)
    assert released.max() <= 0.999


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clock", ["data", "noise"])
def test_every_time_is_strictly_inside_zero_and_one_in_every_dtype(
    device: torch.device, dtype: torch.dtype, clock: Clock
) -> None:
    for alpha, beta in [(1e-3, 1e-3), (1.0, 1e-3), (1e-3, 1.0), (1e4, 1.0), (1.5, 1.0)]:
        times = BetaTime(alpha=alpha, beta=beta, scale=1.0, offset=0.0, clock=clock)
        tau = times.sample((20_000,), generator=generator_on(device), dtype=dtype)
        assert tau.dtype == dtype
        assert ((tau > 0) & (tau < 1)).all()


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


@pytest.mark.parametrize(("alpha", "beta"), [*SHAPES, (1e-6, 1e-6), (1e-6, 2.0), (300.0, 4e-3), (1e4, 1e4)])
def test_the_distribution_function_equals_scipys(device: torch.device, alpha: float, beta: float) -> None:
    centre, spread = stats.beta(alpha, beta).mean(), stats.beta(alpha, beta).std()
    grid = np.concatenate([np.linspace(0, 1, 201), np.clip(centre + spread * np.linspace(-6, 6, 101), 0, 1)])
    own = BetaTime(alpha=alpha, beta=beta, scale=1.0, offset=0.0).cdf(torch.from_numpy(grid).to(device)).cpu().numpy()
    # The logarithm of the normaliser has size max(alpha, beta) * log 2 and carries its rounding into the value.
    tolerance = 1e-13 + 8 * np.finfo(float).eps * (alpha + beta)
    np.testing.assert_allclose(own, special.betainc(alpha, beta, grid), rtol=0, atol=tolerance)


def test_only_mps_is_known_to_lack_float64() -> None:
    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda:1")) == torch.device("cuda:1")


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
    with pytest.raises(ValueError, match=r"scale, offset: expected scale > 0 and times .* inside \[0, 1\], got scale="):
        BetaTime(alpha=1.5, beta=1.0, scale=scale, offset=offset)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_clock_and_an_integer_dtype_are_named() -> None:
    with pytest.raises(ValueError, match="clock: expected 'data'"):
        BetaTime(alpha=1.5, beta=1.0, clock="s")
    with pytest.raises(ValueError, match=r"dtype: expected a floating-point dtype, got torch\.int64"):
        BetaTime.paper().sample((1,), dtype=torch.int64)
