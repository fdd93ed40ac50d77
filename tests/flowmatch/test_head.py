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


PI05 = {"action_in": "action_in_proj", "time_in": "time_mlp_in", "time_out": "time_mlp_out"} | {
    "action_out": "action_out_proj"
}


def case_of(golden: Path, name: str, device: torch.device, model: str = "internvla_a1_3b") -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in load_file(golden / f"{model}/{name}.safetensors").items()}


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


@pytest.mark.parametrize("name", CASES)
def test_a_head_without_state_gives_the_recorded_tokens_condition_and_velocity_of_pi05(
    golden: Path, device: torch.device, name: str
) -> None:
    weights, case = load_file(golden / "pi05/model.safetensors"), case_of(golden, name, device, "pi05")
    head = ActionHead(dim=32, state_dim=None, action_dim=10, time="condition")
    kinds = ("weight", "bias")
    # strict: there is no other parameter, of a state in particular
    head.load_state_dict({f"{a}.{kind}": weights[f"model.{b}.{kind}"] for a, b in PI05.items() for kind in kinds})
    head.to(device)
    noisy, target = RELEASED.sample(case["in.noise"], case["in.actions"], case["in.time"])
    bar = {"rtol": 0, "atol": 1e-5}  # the bar set for recorded quantities of this model
    torch.testing.assert_close(head(noisy, case["in.time"]), case["train.act_in"], **bar)
    torch.testing.assert_close(head.condition(case["in.time"]), case["train.condition"], **bar)
    velocity = head.velocity(case["train.act_out"])
    torch.testing.assert_close(velocity, case["train.velocity"], **bar)
    torch.testing.assert_close((velocity - target).square(), case["train.losses"], **bar)
    for row, time in enumerate(case["in.time"]):
        torch.testing.assert_close(head.condition(time.item()), case["train.condition"][row], **bar)


def test_the_condition_follows_its_equation_for_times_of_any_shape(device: torch.device) -> None:
    head = small_head(device, state_dim=None, time="condition")
    times = torch.rand(3, 5, device=device)
    features = time_features(times, dim=8, min_period=4e-3, max_period=4.0).double()
    own = head.condition(times)
    for row in range(3):
        for step in range(5):
            inner = head.time_in.weight @ features[row, step] + head.time_in.bias
            outer = head.time_out.weight @ (inner * inner.sigmoid()) + head.time_out.bias
            torch.testing.assert_close(own[row, step], outer * outer.sigmoid(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(head.condition(times[1]), own[1], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(head.condition(times[1, 2]), own[1, 2], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(head.condition(times[1, 2].item()), own[1, 2], rtol=1e-13, atol=1e-14)


def test_a_condition_leaves_the_tokens_to_the_actions_alone(device: torch.device) -> None:
    noisy = torch.randn(3, 5, 2, dtype=torch.float64, device=device)
    for time in ("condition", None):
        head = small_head(device, time=time)
        expected = noisy @ head.action_in.weight.T + head.action_in.bias
        for t in (0.2, torch.rand(3, device=device), torch.rand(3, 5, device=device)):
            torch.testing.assert_close(head(noisy, t), expected, rtol=1e-13, atol=1e-14)


def test_a_time_for_each_step_is_the_time_of_that_step_alone(device: torch.device) -> None:
    head = small_head(device)
    noisy, times = torch.randn(3, 5, 2, dtype=torch.float64, device=device), torch.rand(3, 5, device=device)
    own = head(noisy, times)
    for step in range(5):
        torch.testing.assert_close(own[:, step], head(noisy, times[:, step])[:, step], rtol=1e-13, atol=1e-14)
    assert torch.equal(head(noisy, times[0, 0]), head(noisy, times[0, 0].item()))  # one for all, as torchdiffeq has it


def test_states_of_several_times_or_another_width_become_one_token_each(device: torch.device) -> None:
    head = small_head(device, state_width=6)
    states = torch.randn(4, 2, 5, 3, dtype=torch.float64, device=device)
    expected = (states @ head.state_in.weight.T + head.state_in.bias).reshape(4, 10, 6)
    torch.testing.assert_close(head.embed_state(states), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(head.embed_state(states[:, 0]), expected[:, :5], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(head.embed_state(states[:, 0, 0]), expected[:, :1], rtol=1e-13, atol=1e-14)


def test_an_ensemble_under_vmap_equals_its_members_and_hooks_run(device: torch.device) -> None:
    heads = [small_head(device) for _ in range(3)]
    for head in heads:
        torch.nn.init.normal_(head.fusion_in.weight)
    noisy, time = torch.randn(4, 5, 2, dtype=torch.float64, device=device), torch.rand(4, device=device)
    parameters, buffers = torch.func.stack_module_state(heads)

    def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(heads[0], (parameters, buffers), (noisy, time))

    ensemble = torch.vmap(one)(parameters, buffers)
    expected = torch.stack([head.embed_actions(noisy, time) for head in heads])
    torch.testing.assert_close(ensemble, expected, rtol=1e-13, atol=1e-14)
    heads[0].register_forward_hook(lambda _module, _arguments, tokens: 2 * tokens)
    torch.testing.assert_close(heads[0](noisy, time), 2 * expected[0], rtol=1e-13, atol=1e-14)


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


def test_the_networks_time_is_a_float32_number_also_where_tensors_are_bfloat16_by_default(device: torch.device) -> None:
    head, usual = small_head(device), torch.get_default_dtype()
    noisy = torch.randn(3, 5, 2, dtype=torch.float64, device=device)
    expected = head.embed_actions(noisy, 0.9)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(head.embed_actions(noisy, 0.9), expected)
    finally:
        torch.set_default_dtype(usual)


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


def test_heads_have_as_many_parameters_as_those_of_pi0_and_pi05() -> None:
    sizes = {"dim": 1024, "action_dim": 32, "device": "meta"}
    for head, parameters in (
        (ActionHead(**sizes, state_dim=32), 3_248_160),
        (ActionHead(**sizes, state_dim=None, time="condition"), 2_165_792),
    ):
        assert sum(parameter.numel() for parameter in head.parameters()) == parameters


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
    with pytest.raises(ValueError, match=r"state_width: expected None .*\(state_dim=None\), got 6"):
        small_head(torch.device("cpu"), state_dim=None, state_width=6)


@pytest.mark.usefixtures("without_shape_checks")
def test_what_a_head_was_not_built_for_is_refused_by_name(device: torch.device) -> None:
    with pytest.raises(ValueError, match="time: expected 'fused', 'condition' or None, got 'adaln'"):
        small_head(device, time="adaln")
    with pytest.raises(ValueError, match="state: expected none for a head built with state_dim=None, got one"):
        small_head(device, state_dim=None).embed_state(torch.zeros(3, 3, device=device))
    with pytest.raises(ValueError, match=r"state: expected at least the axes \(batch, state_dim\), got shape \(3,\)"):
        small_head(device).embed_state(torch.zeros(3, device=device))
    with pytest.raises(ValueError, match='condition: expected a head built with time="condition", got another'):
        small_head(device).condition(0.5)


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
