"""The training step: the paper's optimiser, its schedule, its clipping."""

import copy
import math

import pytest
import torch
from torch import nn

from moteur.recipes.training import Schedule, adamw, train_step


def test_the_rate_climbs_in_a_line_then_falls_along_half_a_cosine() -> None:
    schedule = Schedule(steps=31, warmup=10, final=0.1)
    assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    for step in range(10, 31):
        assert schedule(step) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 20)) / 2)
    assert schedule(500) == pytest.approx(0.1)


def test_a_training_of_one_step_without_warm_up_has_a_rate() -> None:
    assert Schedule(steps=1, warmup=0)(0) == 1


def test_frozen_parameters_are_not_trained_and_the_others_as_the_paper_says() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(requires_grad=False))
    (group,) = adamw(module, rate=5e-5).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in module[0].parameters()]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (5e-5, (0.9, 0.95), 1e-8, 0.01)


@pytest.mark.parametrize("size", [0.5, 40.0])
def test_the_gradient_is_clipped_as_a_whole_and_its_norm_returned(size: float) -> None:
    weights = [nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2)]
    direction = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64) / 5 * size / math.sqrt(2)
    optimizer = torch.optim.SGD(weights, lr=1.0)
    loss = sum((weight @ direction for weight in weights), start=torch.zeros((), dtype=torch.float64))
    norm = train_step(optimizer, loss, rate=0.25, clip=2.0)
    torch.testing.assert_close(norm, torch.tensor(size, dtype=torch.float64))
    expected = -0.25 * direction * min(1.0, 2.0 / size)
    for weight in weights:
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)  # clip divides by the norm plus 1e-6


def test_old_gradients_are_forgotten() -> None:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 100.0)
    train_step(torch.optim.SGD([weight], lr=1.0), weight.sum(), rate=1.0, clip=10.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_stepped_on(bad: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = adamw(nn.ParameterList([weight]), rate=0.1)
    train_step(optimizer, (weight**2).sum(), rate=0.1)
    before, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="loss: expected one with a finite gradient, got a norm of"):
        train_step(optimizer, bad * (weight**2).sum(), rate=0.1)
    assert torch.equal(weight, before)
    after = optimizer.state_dict()["state"][0]
    assert all(torch.equal(value, after[name]) for name, value in state["state"][0].items())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"warmup": -1}, {"final": float("nan")}, {"final": -0.1}, {"final": 1.5}]
)
def test_a_schedule_that_is_none_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="steps, warmup, final: expected at least 1"):
        Schedule(**{"steps": 10, "warmup": 2, **wrong})
