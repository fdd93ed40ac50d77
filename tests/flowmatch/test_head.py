"""The action head against the recorded reference, and against its own equation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moteur.flowmatch import ActionHead, Clock, flow_loss, interpolate, solve, time_features, velocity_target

RECORDED = {
    "state_in": "state_proj",
    "action_in": "action_in_proj",
    "fusion_in": "action_time_mlp_in",
    "fusion_out": "action_time_mlp_out",
    "action_out": "action_out_proj",
}
CASES = ["all_cameras", "dropped_camera"]
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
    tau = 1 - case["in.time"].double()
    noisy = interpolate(case["in.noise"], case["in.actions"], case["in.time"], clock="noise")
    tokens = torch.cat([recorded.embed_state(case["in.state"]), recorded.embed_actions(noisy, tau)], dim=1)
    torch.testing.assert_close(tokens, case["train.act_in"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_velocity_and_loss_equal_the_recorded_ones_in_either_clock(
    recorded: ActionHead, golden: Path, device: torch.device, name: str
) -> None:
    case = case_of(golden, name, device)
    noise, data = case["in.noise"], case["in.actions"]
    velocity = recorded.velocity(case["train.act_out"][:, 1:])
    for sign, clock in ((1, "data"), (-1, "noise")):
        target = velocity_target(noise, data, clock=clock)
        squared = (target - sign * velocity).square()
        torch.testing.assert_close(squared, case["train.loss_action_elementwise"], rtol=0, atol=TOLERANCE)
        loss = flow_loss(sign * velocity, target, reduction="released")
        torch.testing.assert_close(loss, case["train.loss_action_elementwise"].mean(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("clock", ["data", "noise"])
def test_tokens_and_velocity_follow_the_equation(device: torch.device, clock: Clock) -> None:
    head = small_head(device, clock=clock)
    noisy = torch.randn(4, 5, 2, dtype=torch.float64, device=device)
    tau = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64, device=device)
    time = time_features(tau if clock == "data" else 1 - tau, dim=8).double()
    own = head.embed_actions(noisy, tau)
    for batch in range(4):
        for step in range(5):
            action = head.action_in.weight @ noisy[batch, step] + head.action_in.bias
            hidden = head.fusion_in.weight @ torch.cat([action, time[batch]]) + head.fusion_in.bias
            expected = head.fusion_out.weight @ (hidden * hidden.sigmoid()) + head.fusion_out.bias
            torch.testing.assert_close(own[batch, step], expected, rtol=1e-13, atol=1e-14)
    sign = 1 if clock == "data" else -1
    expected = sign * (own @ head.action_out.weight.T + head.action_out.bias)
    torch.testing.assert_close(head.velocity(own), expected, rtol=1e-13, atol=1e-14)


def test_one_python_float_stands_for_a_batch_of_equal_times(device: torch.device) -> None:
    head = small_head(device)
    noisy = torch.randn(3, 5, 2, dtype=torch.float64, device=device)
    batch = torch.full((3,), 0.3, dtype=torch.float64, device=device)
    assert torch.equal(head.embed_actions(noisy, 0.3), head.embed_actions(noisy, batch))


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
        return solve(lambda x, tau: head.velocity(head.embed_actions(x, tau)), noise, steps=4)

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


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_both_numbers(device: torch.device) -> None:
    head = small_head(device)
    noisy = torch.zeros(3, 5, 2, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"state: expected state_dim=3 numbers on the last axis, got shape \(3, 4\)"):
        head.embed_state(torch.zeros(3, 4, device=device))
    with pytest.raises(
        ValueError, match=r"noisy: expected action_dim=2 numbers on the last axis, got shape \(3, 5, 3\)"
    ):
        head.embed_actions(torch.zeros(3, 5, 3, device=device), 0.5)
    with pytest.raises(
        ValueError, match=r"tau: expected one value for each of the 3 samples, shape \(3,\), got \(1,\)"
    ):
        head.embed_actions(noisy, torch.zeros(1, device=device))
    with pytest.raises(ValueError, match=r"tau: expected a number in \[0, 1\], got 1\.5"):
        head.embed_actions(noisy, 1.5)
    with pytest.raises(ValueError, match=r"tokens: expected dim=8 numbers on the last axis, got shape \(3, 5, 9\)"):
        head.velocity(torch.zeros(3, 5, 9, device=device))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"state_dim": 0}, "state_dim: expected at least 1, got 0"),
        ({"action_dim": -1}, "action_dim: expected at least 1, got -1"),
        ({"dim": 7}, "dim: expected a positive even number"),
        ({"min_period": 5.0}, "min_period, max_period: expected 0 < min_period < max_period"),
        ({"clock": "s"}, "clock: expected 'data'"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_impossible_sizes_are_refused_by_the_constructor(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_head(torch.device("cpu"), **wrong)
