"""Whole calls recorded as CUDA graphs. Skipped where there is no CUDA device."""

import pytest
import torch
from toy_model import random_inputs, randomised, saying

from moteur.recipes import InternVLAA1Config
from moteur.runtime import InferenceSession

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("without_shape_checks")
def test_replayed_calls_give_the_plain_models_actions_for_every_instruction(
    toy: InternVLAA1Config,
    compiled: bool,
) -> None:
    model = randomised(toy)
    session = InferenceSession(randomised(toy).cuda(), compiled=compiled, shapes=3)
    for turn in range(2):
        for words in range(1, toy.text_length + 1):
            inputs = saying(random_inputs(toy, 1, 10 * turn + words), words)
            noise = torch.randn(1, toy.chunk, toy.action_dim)
            found = session.act(inputs, noise=noise).cpu()
            torch.testing.assert_close(found, model.act(inputs, noise=noise), rtol=0, atol=1e-4)
    assert len(session._recorded) == 3


def test_a_replayed_call_does_not_wait_for_the_device(toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 1, 2)
    session = InferenceSession(randomised(toy).cuda(), compiled=False)
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    session.act(inputs, noise=noise)
    torch.cuda.set_sync_debug_mode("error")
    try:
        session.act(inputs, noise=noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_of_an_earlier_call_are_not_overwritten(toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 1, 3)
    session = InferenceSession(randomised(toy).cuda(), compiled=False)
    first = session.act(inputs, noise=torch.zeros(1, toy.chunk, toy.action_dim))
    kept = first.clone()
    session.act(inputs, noise=torch.ones(1, toy.chunk, toy.action_dim))
    assert torch.equal(first, kept)
