"""The example of a model of one's own: a session gives its actions, and training goes through a joint pass."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from moteur.recipes import Inputs
from moteur.runtime import InferenceSession

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.mark.usefixtures("without_shape_checks")
def test_a_session_gives_the_actions_of_the_joint_pass_of_a_model_of_ones_own() -> None:
    parts = runpy.run_path(str(EXAMPLE))
    torch.manual_seed(1)
    model = parts["SmallVLA"](parts["Config"]()).double().eval()
    frames = torch.randint(0, 256, (3, 2, 1, 3, 32, 32), dtype=torch.uint8)
    inputs = Inputs(frames, torch.randint(0, 100, (3, 8)), None, None, torch.randn(3, 7, dtype=torch.float64))
    noise = torch.randn(3, 10, 7, dtype=torch.float64)
    x = noise
    with torch.no_grad():
        for step in range(10):  # no cache: both streams in one pass, at every step
            time = 1 - step / 10
            hidden = model.run({"see": model.see(inputs), "act": model.embed(inputs, x, time)}, 0)
            x = x - model.head.velocity(hidden["act"][:, 1:]) / 10
    torch.testing.assert_close(model.denoise(inputs, None, noise), x, rtol=0, atol=1e-12)
    single = copy.deepcopy(model).float()
    acted = InferenceSession(single).act(inputs, noise=noise.float())
    torch.testing.assert_close(acted, single.denoise(inputs, None, noise.float()), rtol=0, atol=1e-5)
    torch.testing.assert_close(acted.double(), x, rtol=0, atol=1e-4)
