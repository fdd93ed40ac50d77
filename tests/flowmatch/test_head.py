"""The action head against the recorded reference, and against its own equation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moteur.flowmatch import ActionHead, StraightPath, flow_loss
from moteur.flowmatch.time import time_features

RECORDED = {
    "state_in": "state_proj",
    "action_in": "action_in_proj",
    "fusion_in": "action_time_mlp_in",
    "fusion_out": "action_time_mlp_out",
    "action_out": "action_out_proj",
}
CASES = ["all_cameras", "dropped_camera"]
RELEASED = StraightPath(noise_at=1)  # the clock of the recorded reference
TOLERANCE = 5e-5  # float32 over widths of 48 and 96, the bar set for every recorded quantity


@pytest.fixture
def recorded(golden: Path, device: torch.device) -> ActionHead:
    """Head with the weights of the recorded reference; its state, action and token widths are 5, 7 and 48."""
    weights = load_file(golden / "internvla_a1_3b/model.safetensors")
    head = ActionHead(dim=48, state_dim=5, action_dim=7)
    head.load_state_dict(
        {
            f"{ours}.{kind}": weights[f"model.{theirs}.{kind}"]
            for ours, theirs in RECORDED.items()
            for kind in ("weight", "bias")
        }
    )
    return head.to(device)


def case_of(golden: Path, name: str, device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in load_file(golden / f"internvla_a1_3b/{name}.safetensors").items()}


def small_head(device: torch.device, **changes: object) -> ActionHead:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": 8, "state_dim": 3, "action_dim": 2, "dtype": torch.float64, **changes}
    return ActionHead(**sizes).to(device)


@pytest.mark.parametrize("name", CASES)
def test_state_and_action_tokens_equal_the_recorded_ones(
    recorded: ActionHead, golden: Path, device: torch.device, name: str
) -> None:
    case = case_of(golden, name, device)
    noisy = RELEASED.sample(case["in.noise"], case["in.actions"], case["in.time"]).point
    tokens = torch.cat([recorded.embed_state(case["in.state"]), recorded.embed_actions(noisy, case["in.time"])], dim=1)
    torch.testing.assert_close(tokens, case["train.act_in"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_velocity_and_loss_equal_the_recorded_ones(
    recorded: ActionHead, golden: Path, device: torch.device, name: str
) -> None:
    case = case_of(golden, name, device)
    target = RELEASED.sample(case["in.noise"], case["in.actions"], case["in.time"]).velocity
    velocity = recorded.velocity(case["train.act_out"][:, 1:])
    elements = case["train.loss_action_elementwise"]
    torch.testing.assert_close((target - velocity).square(), elements, rtol=0, atol=TOLERANCE)
    loss = flow_loss(velocity, target, reduction="released")
    torch.testing.assert_close(loss, elements.mean(), rtol=0, atol=TOLERANCE)


def test_tokens_and_velocity_follow_the_equation(device: torch.device) -> None:
    head = small_head(device)
    noisy = torch.randn(4, 5, 2, dtype=torch.float64, device=device)
    times = torch.tensor([0.0, 0.3, 0.6, 1.0], device=device)
    time = time_features(times, dim=8, min_period=4e-3, max_period=4.0).double()
    own = head.embed_actions(noisy, times)
    for batch in range(4):
        for step in range(5):
            action = head.action_in.weight @ noisy[batch, step] + head.action_in.bias
            hidden = head.fusion_in.weight @ torch.cat([action, time[batch]]) + head.fusion_in.bias
            expected = head.fusion_out.weight @ (hidden * hidden.sigmoid()) + head.fusion_out.bias
            torch.testing.assert_close(own[batch, step], expected, rtol=1e-13, atol=1e-14)
    expected = own @ head.action_out.weight.T + head.action_out.bias
    torch.testing.assert_close(head.velocity(own), expected, rtol=1e-13, atol=1e-14)


def test_the_networks_time_is_a_float32_number_however_it_is_given(device: torch.device) -> None:
    # 0.9 in float64 and in float32 differ by 2.4e-8, which is 3.7e-5 rad in the fastest feature.
    head = small_head(device)
    noisy = torch.randn(3, 5, 2, dtype=torch.float64, device=device)
    expected = head.embed_actions(noisy, torch.full((3,), 0.9, device=device))
    exact = torch.full((3,), 0.9, dtype=torch.float64, device=device)
    assert torch.equal(head.embed_actions(noisy, exact), expected)
    assert torch.equal(head.embed_actions(noisy, 0.9), expected)


def test_every_parameter_receives_a_gradient(device: torch.device) -> None:
    head = small_head(device)
    noisy = torch.randn(3, 5, 2, dtype=torch.float64, device=device)
    tokens = torch.cat([head.embed_state(noisy.new_ones(3, 3)), head.embed_actions(noisy, 0.5)], dim=1)
    head.velocity(tokens).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_a_read_out_in_float32_gives_float32_velocities_from_a_bfloat16_head(device: torch.device) -> None:
    head = small_head(device, dtype=torch.bfloat16)
    head.action_out.to(torch.float32)
    noisy = torch.randn(3, 5, 2, device=device)
    tokens = head.embed_actions(noisy, torch.rand(3, device=device))
    assert tokens.dtype == head.embed_state(torch.ones(3, 3, device=device)).dtype == torch.bfloat16
    assert head.velocity(tokens).dtype == torch.float32


@pytest.mark.usefixtures("without_shape_checks")
def test_denoising_with_the_head_is_one_graph_and_equals_the_plain_loop(device: torch.device) -> None:
    head = small_head(device, dtype=torch.float32)

    def denoise(noise: torch.Tensor) -> torch.Tensor:
        return RELEASED.solve(lambda x, t: head.velocity(head.embed_actions(x, t)), noise, steps=4)

    noise = torch.randn(3, 5, 2, device=device)
    with torch.no_grad():
        compiled = torch.compile(denoise, fullgraph=True, backend="eager")(noise)
        torch.testing.assert_close(compiled, denoise(noise), rtol=1e-6, atol=1e-6)


def test_a_head_on_the_meta_device_has_the_parameters_of_the_released_one() -> None:
    head = ActionHead(dim=1024, state_dim=32, action_dim=32, device="meta")
    assert sum(parameter.numel() for parameter in head.parameters()) == (
        2 * (32 * 1024 + 1024) + (2048 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 32 + 32)
    )


def test_a_forward_pass_leaves_nothing_behind(device: torch.device) -> None:
    head = small_head(device)
    before = {name: value for name, value in vars(head).items() if not name.startswith("_")}
    head.embed_actions(torch.randn(3, 5, 2, dtype=torch.float64, device=device), 0.5)
    assert {name: value for name, value in vars(head).items() if not name.startswith("_")} == before
    assert not list(head.buffers())


def test_impossible_sizes_are_named_with_what_was_expected() -> None:
    for dim in (0, -2, 7):
        with pytest.raises(ValueError, match=f"dim: expected a positive even number, got {dim}"):
            small_head(torch.device("cpu"), dim=dim)
    for low, high in [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))]:
        message = "min_period, max_period: expected 0 < min_period < max_period, both finite"
        with pytest.raises(ValueError, match=message):
            small_head(torch.device("cpu"), min_period=low, max_period=high)


@pytest.mark.usefixtures("without_shape_checks")
def test_vectors_of_the_wrong_length_and_times_of_another_batch_are_refused_by_torch(device: torch.device) -> None:
    # No hand-written check: this holds that nothing broadcasts in silence.
    head = small_head(device)
    noisy = torch.zeros(3, 5, 2, dtype=torch.float64, device=device)
    calls: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = [
        (head.embed_state, (torch.zeros(3, 4, device=device),)),
        (head.embed_actions, (torch.zeros(3, 5, 3, device=device), torch.zeros(3, device=device))),
        (head.embed_actions, (noisy, torch.zeros(1, device=device))),
        (head.embed_actions, (noisy[:1], torch.zeros(4, device=device))),
        (head.velocity, (torch.zeros(3, 5, 9, device=device),)),
    ]
    for call, wrong in calls:
        with pytest.raises(RuntimeError, match=r"shape|size"):
            call(*wrong)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_that_are_not_real_are_refused_by_name(device: torch.device, dtype: torch.dtype) -> None:
    head = small_head(device)
    noisy, time = torch.zeros(3, 5, 2, device=device), torch.zeros(3, device=device)
    for name, call in (
        ("state", lambda: head.embed_state(torch.zeros(3, 3, device=device, dtype=dtype))),
        ("noisy", lambda: head.embed_actions(noisy.to(dtype), time)),
        ("time", lambda: head.embed_actions(noisy, time.to(dtype))),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected floating point, got {dtype}$"):
            call()
