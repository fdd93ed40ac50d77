"""Real-time chunking, trained and untrained, against functions written after LeRobot's and the paper's equations."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moteur.flowmatch import ActionHead, Method, StraightPath, flow_loss
from moteur.flowmatch.guidance import Falloff

METHODS: list[Method] = ["euler", "midpoint", "heun"]
FORWARD, BACKWARD = StraightPath(noise_at=0), StraightPath(noise_at=1)
PATHS = pytest.mark.parametrize("path", [FORWARD, BACKWARD], ids=["noise_at=0", "noise_at=1"])


def chunk(device: torch.device, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def network(device: torch.device) -> Callable[[Tensor, Tensor | float], Tensor]:
    """A head with a mixing layer: every action sees all others, and its own time."""
    torch.manual_seed(3)
    head, mixing = ActionHead(dim=8, state_dim=None, action_dim=3).to(device), torch.nn.Linear(6, 6).to(device)
    return lambda x, t: head.velocity(mixing(head(x, t).transpose(1, 2)).transpose(1, 2))


# A clean prefix, for networks trained with one


def integrate_with_hard_prefix(denoise: Callable, noise: Tensor, steps: int, prefix: Tensor, mask: Tensor) -> Tensor:
    """Euler from 1 to 0; values under the mask are held at the prefix, and their action's time is 0."""
    x, dt = noise, -1.0 / steps
    for step in range(steps):
        x = torch.where(mask, prefix, x)
        time = torch.tensor(1.0 + step * dt, dtype=torch.float32, device=x.device).expand(x.shape[:2]).clone()
        time[mask[..., 0]] = 0.0
        x = torch.where(mask, prefix, x + dt * denoise(x, time))
    return x


@pytest.mark.parametrize("steps", [1, 4, 10, 25])
@pytest.mark.parametrize("delay", [0, 2, 6])
def test_a_clean_prefix_is_lerobots_hard_prefix(device: torch.device, steps: int, delay: int) -> None:
    noise, known, denoise = chunk(device), chunk(device, 1), network(device)
    mask = (torch.arange(6, device=device) < delay)[None, :, None].expand(2, 6, 3)
    with torch.no_grad():
        expected = integrate_with_hard_prefix(denoise, noise, steps, known, mask)
        found = BACKWARD.solve(denoise, noise, steps=steps, prefix=known[:, :delay], prefix_mode="clean")
    # Its times, 1 + k dt, and ours, (n - k) / n, may be neighbours in float32: 6e-8, times 1,571 rad in the features.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if steps == 25 else 0)
    assert torch.equal(found[:, :delay], known[:, :delay])


@pytest.mark.parametrize("method", METHODS)
@PATHS
def test_the_network_sees_a_clean_prefix_at_the_time_of_data_all_along(
    device: torch.device, path: StraightPath, method: Method
) -> None:
    known, asked = chunk(device, 1)[:, :2], []

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        assert times.shape == (2, 6)
        assert times.dtype == torch.float32
        assert torch.equal(x[:, :2], known)
        assert (times[:, :2] == 1 - path.noise_at).all()
        asked.append(times[0, 2:].unique().item())
        return torch.full_like(x, math.inf).where(torch.arange(6, device=x.device)[:, None] < 2, x)

    end = path.solve(velocity, chunk(device), steps=3, method=method, prefix=known, prefix_mode="clean")
    plain: list[float] = []

    def free(x: Tensor, time: float) -> Tensor:
        plain.append(time)
        return x

    expected = path.solve(free, chunk(device), steps=3, method=method)
    assert asked == pytest.approx(plain, abs=1e-7)
    assert torch.equal(end[:, 2:], expected[:, 2:])


def test_a_clean_prefix_equals_times_of_each_action_that_say_so(device: torch.device) -> None:
    noise, known, denoise = chunk(device), chunk(device, 1), network(device)
    times = torch.linspace(1, 0, 6, device=device)[:, None, None].repeat(1, 2, 6)
    times[:, :, :2] = 0
    with torch.no_grad():
        expected = BACKWARD.solve(denoise, torch.cat([known[:, :2], noise[:, 2:]], dim=1), times=times)
        found = BACKWARD.solve(denoise, noise, steps=5, prefix=known[:, :2], prefix_mode="clean")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32 times, as above


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_solving_with_a_clean_prefix_is_one_graph(device: torch.device) -> None:
    noise, known, denoise = chunk(device), chunk(device, 1)[:, :2], network(device)

    def solve(noise: Tensor) -> Tensor:
        return BACKWARD.solve(denoise, noise, steps=3, prefix=known, prefix_mode="clean")

    with torch.no_grad():
        compiled = torch.compile(solve, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(noise), solve(noise), rtol=1e-6, atol=1e-6)


def test_delayed_times_train_on_what_lerobot_trains_on(device: torch.device) -> None:
    noise, actions = chunk(device), chunk(device, 1)
    time, delay = torch.tensor([0.25, 0.7], device=device), torch.tensor([3, 0], device=device)
    known = torch.arange(6, device=device) < delay[:, None]
    # LeRobot's inputs: known actions clean at time 0, the rest on the line at the sample's time; loss over the rest.
    expected_times = torch.where(known, 0.0, time[:, None])
    line = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    expected = torch.where(known[..., None], actions, line)

    times, free = BACKWARD.delayed(time, delay, steps=6)
    noisy, velocity = BACKWARD.sample(noise, actions, times)
    assert torch.equal(times, expected_times)
    assert torch.equal(noisy, expected)
    predicted = network(device)(noisy, times)
    error = (predicted - (noise - actions)).square()
    loss = flow_loss(predicted, velocity, valid_steps=free)
    torch.testing.assert_close(loss, error[~known].mean())


@PATHS
def test_delayed_times_are_those_of_data_in_either_clock(device: torch.device, path: StraightPath) -> None:
    times, free = path.delayed(torch.full((2,), 0.5, device=device), torch.tensor([1, 9], device=device), steps=3)
    end = float(1 - path.noise_at)
    assert times.tolist() == [[end, 0.5, 0.5], [end, end, end]]
    assert free.tolist() == [[False, True, True], [False, False, False]]


# Guidance, for networks trained without


def weights_as_linspace(delay: int, horizon: int, total: int, schedule: Falloff) -> Tensor:
    """Weights as LeRobot builds them: ones, a piece of a line from 1 to 0, zeros."""
    line = torch.linspace(1, 0, horizon - delay + 2, dtype=torch.float64)[1:-1]
    if schedule == "exp":
        line = line * torch.expm1(line) / (math.e - 1)
    elif schedule != "linear":
        line = torch.full_like(line, float(schedule == "ones"))
    return torch.cat([torch.ones(delay), line, torch.zeros(total - horizon)])


def by_the_paper(field: Callable, x: Tensor, tau: float, rest: Tensor, weights: Tensor, limit: float) -> Tensor:
    """Guided velocity in flow time, with the whole Jacobian of the predicted data, entry by entry."""
    predicted = x + (1 - tau) * field(x, tau)
    jacobian = torch.autograd.functional.jacobian(lambda x: x + (1 - tau) * field(x, tau), x).reshape(x.numel(), -1)
    error = (weights[:, None] * (rest - predicted)).flatten()
    variance = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    strength = limit if tau == 0 else min(limit, (1 - tau) / (tau * variance))
    return field(x, tau) + strength * (jacobian.T @ error).reshape(x.shape)


def mixed(x: Tensor, tau: float) -> Tensor:
    """A velocity in flow time whose Jacobian is neither diagonal nor symmetric."""
    return torch.sin(x) * x.roll(1, dims=1) - tau * x.cumsum(dim=1)


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
@pytest.mark.parametrize(("delay", "horizon", "known"), [(2, 4, 5), (0, 6, 6), (3, 3, 4), (0, 0, 2)])
def test_guidance_is_the_papers_in_either_clock(
    device: torch.device, schedule: Falloff, delay: int, horizon: int, known: int
) -> None:
    x, rest = (chunk(device, seed, torch.float64) for seed in (0, 1))
    rest[:, known:] = 0  # LeRobot pads so; the weights there are 0
    weights = weights_as_linspace(delay, horizon, 6, schedule).to(device)
    options = {"delay": delay, "horizon": horizon, "schedule": schedule, "limit": 2.5}
    forward = FORWARD.guided(mixed, rest[:, :known], **options)
    backward = BACKWARD.guided(lambda x, s: -mixed(x, 1 - s), rest[:, :known], **options)
    for tau in (0.0, 0.25, 0.5, 0.875):
        expected = by_the_paper(mixed, x, tau, rest, weights, limit=2.5)
        torch.testing.assert_close(forward(x, tau), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(backward(x, 1 - tau), -expected, rtol=1e-12, atol=1e-12)


def test_a_guided_chunk_goes_on_with_the_leftover_and_one_without_weight_is_the_plain_one(device: torch.device) -> None:
    noise, rest, denoise = chunk(device), chunk(device, 1)[:, :4], network(device)
    with torch.no_grad():  # a policy acts so: guidance differentiates all the same
        plain = BACKWARD.solve(denoise, noise, steps=20)
        guided = BACKWARD.solve(BACKWARD.guided(denoise, rest, delay=2), noise, steps=20)
        free = BACKWARD.solve(BACKWARD.guided(denoise, rest, delay=0, horizon=0), noise, steps=20)
    assert (guided[:, :2] - rest[:, :2]).abs().max() < 0.1 * (plain[:, :2] - rest[:, :2]).abs().max()
    torch.testing.assert_close(free, plain)


def test_the_whole_leftover_is_steered_unless_a_horizon_is_given(device: torch.device) -> None:
    x, rest = chunk(device), chunk(device, 1)[:, :4]
    given = FORWARD.guided(mixed, rest, delay=1, horizon=4)
    assert torch.equal(FORWARD.guided(mixed, rest, delay=1)(x, 0.5), given(x, 0.5))


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_what_was_expected(device: torch.device) -> None:
    noise, rest = chunk(device), chunk(device, 1)[:, :4]
    with pytest.raises(ValueError, match="prefix_mode: expected 'noised' or 'clean', got 'hard'"):
        FORWARD.solve(mixed, noise, prefix=rest, prefix_mode="hard")
    for delay, horizon in ((-1, 2), (3, 2), (2, 5)):
        with pytest.raises(
            ValueError, match=rf"delay, horizon: .* 4 known actions, got delay={delay}, horizon={horizon}"
        ):
            FORWARD.guided(mixed, rest, delay=delay, horizon=horizon)
    with pytest.raises(ValueError, match=r"schedule: expected one of 'exp', 'linear', 'ones', 'zeros', got 'cosine'"):
        FORWARD.guided(mixed, rest, delay=1, schedule="cosine")
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"limit: expected a positive number, got {limit}"):
            FORWARD.guided(mixed, rest, delay=1, limit=limit)
    with pytest.raises(ValueError, match=r"leftover: .* a state of shape \(2, 3, 3\), got \(2, 4, 3\)"):
        FORWARD.guided(mixed, rest, delay=1)(noise[:, :3], 0.5)
    with pytest.raises(ValueError, match=r"leftover: expected floating point, got torch\.int64"):
        FORWARD.guided(mixed, rest.long(), delay=1)
