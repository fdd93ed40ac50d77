"""π0 and π0.5 in a session and as a policy: the actions of the plain model, from what a robot has."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from toy_pi0 import pi0_inputs, random_pi0, toy_pi0

from moteur.data import FieldStatistics, Robot, RobotStatistics, Source, resize_with_pad
from moteur.recipes import Inputs, Pi0
from moteur.runtime import InferenceSession, Policy

VARIANTS = pytest.mark.parametrize("variant", ["pi0", "pi05"])
Variant = Literal["pi0", "pi05"]


@VARIANTS
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kernel", ["aten", "onednn"])
def test_a_session_gives_the_actions_of_the_plain_model(
    variant: Variant, dtype: torch.dtype, bar: float, kernel: Literal["aten", "onednn"]
) -> None:
    if dtype == torch.float64 and kernel == "onednn":
        pytest.skip("oneDNN has no float64")
    model = random_pi0(toy_pi0(variant), dtype=dtype)
    session = InferenceSession(model, kernel=kernel)
    for seed in range(4):
        inputs = pi0_inputs(model.config, seed=seed, dtype=dtype)
        noise = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        torch.testing.assert_close(session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=bar)


@VARIANTS
def test_a_session_leaves_out_cameras_that_no_sample_has(variant: Variant) -> None:
    model = random_pi0(toy_pi0(variant), dtype=torch.float32)
    inputs = replace(pi0_inputs(model.config, dtype=torch.float32), view_valid=torch.tensor([[True, False, False]] * 3))
    noise = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
    session = InferenceSession(model, kernel="aten")
    widths: list[int] = []
    session.model.backbone.vision.register_forward_pre_hook(lambda _, given: widths.append(len(given[0])))
    torch.testing.assert_close(session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5)
    assert widths == [3]  # one picture a sample


@VARIANTS
def test_a_session_refuses_to_imagine_and_to_observe(variant: Variant) -> None:
    session = InferenceSession(random_pi0(toy_pi0(variant), dtype=torch.float32), kernel="aten")
    inputs = pi0_inputs(session.config, dtype=torch.float32)
    with pytest.raises(ValueError, match="imagine: expected a model with a generation expert, got one without"):
        session.imagine(inputs)
    with pytest.raises(ValueError, match="observe: expected a model with a generation expert, got one without"):
        session.observe(inputs.frames[:, :, 0])


def robot_of(model: Pi0) -> tuple[Robot, RobotStatistics]:
    robot = Robot("toy", (Source("state", 3),), (Source("action", 3),), ("front", None, "wrist"), rate=30)
    state = FieldStatistics(
        9, mean=(0.5, 0.0, -1.0), std=(1.0, 2.0, 0.5), min=(-2.0,) * 3, max=(3.0,) * 3, q01=(-1.5,) * 3, q99=(2.5,) * 3
    )
    return robot, RobotStatistics("toy", model.config.chunk, state, state)


@VARIANTS
def test_a_policy_returns_the_robots_own_commands(variant: Variant) -> None:
    config = replace(toy_pi0(variant), text_length=60, vocabulary=300)
    model = random_pi0(config, dtype=torch.float32)
    robot, statistics = robot_of(model)
    transform = config.transform(robot, statistics)
    policy = Policy(InferenceSession(model, kernel="aten"), lambda text: [ord(letter) for letter in text], transform)
    own = np.random.default_rng(0)
    pictures = {name: own.integers(0, 256, (30, 40, 3), dtype=np.uint8) for name in ("front", "wrist")}
    state, noise = np.array([0.1, -0.2, 0.3]), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    chunk = policy.act(pictures, state, "fold_the towel", noise=noise)
    assert chunk.actions.shape == (5, 3)
    # the same by hand: resize, prompt, normalise, act, undo
    side = config.frame_size
    frames = torch.stack(
        [
            resize_with_pad(torch.from_numpy(pictures[name]).permute(2, 0, 1), side, convention="openpi")
            for name in ("front", "front", "wrist")
        ]
    )[None, :, None]
    low, high = np.array([-1.5] * 3), np.array([2.5] * 3)
    if variant == "pi0":
        text, padded = ["fold the towel", "\n"], (state - [0.5, 0.0, -1.0]) / (np.array([1.0, 2.0, 0.5]) + 1e-6)
    else:
        padded = (state - low) / (high - low + 1e-6) * 2 - 1
        bins = np.digitize(padded, np.linspace(-1, 1, 257)[:-1]) - 1
        text = [f"Task: fold the towel, State: {' '.join(map(str, bins))};\nAction: "]
    words = torch.tensor([[2, *(ord(letter) for piece in text for letter in piece)]])
    known = torch.tensor([[True, False, True]])
    inputs = Inputs(frames, words, None, known, torch.tensor([[*padded, 0.0]], dtype=torch.float32))
    actions = model.act(inputs, noise=noise[None])[0].double().numpy()
    if variant == "pi0":
        commands = actions * (np.array([1.0, 2.0, 0.5]) + 1e-6) + [0.5, 0.0, -1.0]
    else:
        commands = (actions + 1) / 2 * (high - low + 1e-6) + low
    np.testing.assert_allclose(chunk.actions, commands, rtol=0, atol=2e-5)
