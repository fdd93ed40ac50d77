"""The scripted expert succeeds, from anywhere; acting at random does not; recordings survive a round trip."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import collect as collecting
from collect import PICTURES, collect, record
from env import CAMERAS, ConveyorEnv, to_metres
from expert import expert_action, ramp, study, wilson
from robot import ROBOT

from moteur.data import LeRobotSet


@pytest.fixture(scope="module")
def env() -> Iterator[ConveyorEnv]:
    made = ConveyorEnv(image_size=32)
    yield made
    made.close()


def test_the_expert_succeeds_on_every_one_of_ten_seeds(env: ConveyorEnv) -> None:
    assert study(env, range(10), progress=False)["success_rate"] == 1


def test_the_expert_succeeds_with_every_colour_and_the_fastest_belt() -> None:
    env = ConveyorEnv(image_size=16, colors=("red", "green", "blue", "yellow"), blocks=(3, 3))
    for seed, color in enumerate(env.colors):
        env.reset(seed=seed, options={"target": color, "belt_speed": -0.12})
        ended = cut = False
        while not (ended or cut):
            *_, ended, cut, info = env.step(expert_action(env.situation()))
        assert info["outcome"] == "success", color
    env.close()


def test_the_expert_takes_over_after_somebody_else_has_driven_the_arm_astray(env: ConveyorEnv) -> None:
    outcomes = []
    for seed in range(6):
        env.reset(seed=seed, options={"belt_speed": 0.05})
        rng = np.random.default_rng(seed)
        for _ in range(3):
            wild = rng.uniform([-1, -1, 0, -1], 1)
            for _ in range(8):
                env.step(wild)
        ended = cut = False
        while not (ended or cut):
            *_, ended, cut, info = env.step(expert_action(env.situation()))
        outcomes.append(info["outcome"])
    assert outcomes == ["success"] * 6


def test_the_expert_is_a_function_of_the_situation_alone(env: ConveyorEnv) -> None:
    env.reset(seed=1)
    for _ in range(20):
        env.step(expert_action(env.situation()))
    np.testing.assert_array_equal(expert_action(env.situation()), expert_action(env.situation()))


def test_random_actions_do_not_succeed(env: ConveyorEnv) -> None:
    for seed in range(5):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        ended = cut = False
        while not (ended or cut):
            *_, ended, cut, info = env.step(env.action_space.sample())
        assert not info["success"]


def test_ramp_is_flat_outside_and_halfway_in_the_middle() -> None:
    assert [ramp(value, 1.0, 2.0) for value in (0.0, 1.0, 1.5, 2.0, 9.0)] == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (13, 20), (200, 200)])
def test_wilson_s_interval_agrees_with_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    # z = 1.96 instead of 1.959964 moves the interval by less than 1e-5.
    np.testing.assert_allclose(wilson(successes, trials), (expected.low, expected.high), atol=1e-5)


def test_recordings_hold_what_the_policy_saw_and_the_undisturbed_action(env: ConveyorEnv) -> None:
    episode = record(env, 2, noise=0.015, moved_starts=0.0)
    steps = len(episode["state"])
    assert all(episode[name].shape == (steps, 32, 32, 3) for name in CAMERAS)
    assert all(episode[name].dtype == np.uint8 for name in CAMERAS)
    observation, _ = env.reset(seed=2)
    for step in range(steps):
        for name in CAMERAS:
            np.testing.assert_array_equal(episode[name][step], observation["pixels"][name])
        np.testing.assert_array_equal(episode["state"][step], observation["agent_pos"])
        np.testing.assert_array_equal(episode["action"][step], expert_action(env.situation()))
        observation, *_, info = env.step(episode["executed"][step])
    assert info["success"]
    offset = to_metres(episode["executed"]) - to_metres(episode["action"])
    assert 0.003 < np.abs(offset[:, :2]).mean() < 0.03
    np.testing.assert_array_equal(offset[:, 3], 0)


def test_the_set_holds_the_episodes_and_a_second_call_only_adds_what_is_missing(
    tmp_path: Path, env: ConveyorEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(tmp_path, 2, image_size=32, progress=False)
    asked: list[int] = []
    monkeypatch.setattr(collecting, "record", lambda env, seed, **rest: asked.append(seed) or record(env, seed, **rest))
    collect(tmp_path, 3, image_size=32, progress=False)
    collect(tmp_path, 2, image_size=32, progress=False)  # more than enough is there
    assert asked == [2]
    dataset = LeRobotSet(tmp_path)
    ROBOT.check(dataset.info)
    start = 0
    for seed in range(3):
        episode = record(env, seed, noise=0.015, moved_starts=0.5)
        length = len(episode["state"])
        assert dataset.index.length[seed] == length
        for key, name in {"observation.state": "state", "action": "action", "executed": "executed"}.items():
            np.testing.assert_array_equal(dataset.column(key, seed), episode[name])
        np.testing.assert_array_equal(dataset.column("seed", seed).ravel(), np.full(length, seed))
        for name, key in PICTURES.items():
            pictures = dataset.frames_at(key, seed, range(length)).numpy().transpose(0, 2, 3, 1)
            # Half of the colour's resolution and h264 at a constant quality: 25 dB for pictures of 32 x 32.
            assert np.square(pictures.astype(float) - episode[name]).mean() < 255**2 * 10**-2.5
        assert dataset[start]["task"] == episode["instruction"]
        start += length
    assert len(dataset) == start


def test_seeds_that_the_disturbed_expert_fails_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pictures = {name: np.zeros((2, 32, 32, 3), dtype=np.uint8) for name in CAMERAS}
    numbers = {name: np.zeros((2, 4), dtype=np.float32) for name in ("state", "action", "executed")}

    def fake(_env: ConveyorEnv, seed: int, **_rest: float) -> dict[str, object]:
        asked.append(seed)
        return {**pictures, **numbers, "instruction": "take it", "seed": seed, "success": seed != 1}

    monkeypatch.setattr(collecting, "record", fake)
    collect(tmp_path, 2, image_size=32, progress=False)
    collect(tmp_path, 3, image_size=32, progress=False)
    assert asked == [0, 1, 2, 3]
    dataset = LeRobotSet(tmp_path, keys=["seed"])
    assert [int(dataset.column("seed", episode)[0]) for episode in range(3)] == [0, 2, 3]


def test_recordings_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    collect(tmp_path, 1, image_size=32, progress=False)
    with pytest.raises(ValueError, match="choose another folder"):
        collect(tmp_path, 1, image_size=64, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"episodes": 1, "noise": -1.0}, "noise must be >= 0"),
        ({"episodes": 1, "moved_starts": 2.0}, r"moved_starts in \[0, 1\]"),
    ],
)
def test_bad_settings_of_a_recording_are_named(tmp_path: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(tmp_path, **arguments)
