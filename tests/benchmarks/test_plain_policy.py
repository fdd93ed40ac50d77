"""The yardstick of the speed figures computes what the model computes: otherwise its times would mean nothing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_model import as_dtype, random_inputs, randomised, toy_config, toy_config_2b

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the benchmarks are no package

from plain_policy import PlainPolicy

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config

CONFIGS = {"3B": toy_config, "2B": toy_config_2b}


def case(config: InternVLAA1Config, dtype: torch.dtype, device: torch.device) -> tuple[InternVLAA1, Inputs]:
    return randomised(config).to(device, dtype), inputs_for(config, dtype, device)


def inputs_for(config: InternVLAA1Config, dtype: torch.dtype, device: torch.device) -> Inputs:
    return as_dtype(random_inputs(config, batch=2, seed=3), dtype).to(device)


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("foresight", [True, False])
def test_the_plain_policy_acts_as_the_model_does(*, variant: str, foresight: bool, device: torch.device) -> None:
    config = CONFIGS[variant]() if foresight else CONFIGS[variant]().without_foresight()
    model, inputs = case(config, torch.float64, device)
    noise = torch.randn(2, config.chunk, config.action_dim, dtype=torch.float64, device=device)
    # Float64 throughout; rotary angles and time features are computed in float32 by both alike.
    torch.testing.assert_close(
        PlainPolicy(model).act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("variant", CONFIGS)
def test_it_treats_missing_views_and_another_number_of_steps_as_the_model_does(
    variant: str, device: torch.device
) -> None:
    config = CONFIGS[variant]()
    model, inputs = case(config, torch.float64, device)
    seen = torch.tensor([[True, False, True], [True, True, False]], device=device)
    inputs = replace(inputs, view_valid=seen)
    noise = torch.randn(2, config.chunk, config.action_dim, dtype=torch.float64, device=device)
    plain = PlainPolicy(model).act(inputs, noise=noise, steps=7)
    torch.testing.assert_close(plain, model.act(inputs, noise=noise, steps=7), rtol=0, atol=1e-12)
    assert not torch.equal(plain, PlainPolicy(model).act(inputs, noise=noise, steps=6))


def test_it_writes_neither_to_the_noise_nor_to_the_model(device: torch.device) -> None:
    config = toy_config()
    model, inputs = case(config, torch.float32, device)
    noise = torch.randn(2, config.chunk, config.action_dim, device=device)
    before, weights = noise.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    PlainPolicy(model).act(inputs, noise=noise)
    assert torch.equal(noise, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
