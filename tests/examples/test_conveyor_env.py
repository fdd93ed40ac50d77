"""The conveyor: gymnasium's contract, determinism, physics, and clear refusals."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from env import BIN, BLOCK, CAMERAS, HIGH, LOW, ConveyorEnv, to_action, to_metres
from expert import expert_action
from gymnasium.utils.env_checker import check_env

EXAMPLE = Path(__file__).parents[2] / "examples" / "conveyor"


@pytest.fixture(scope="module")
def env() -> Iterator[ConveyorEnv]:
    made = ConveyorEnv()
    yield made
    made.close()


def trajectory(env: ConveyorEnv, seed: int, steps: int) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    frames, states = [], []
    for _ in range(steps):
        observation, *_ = env.step(expert_action(env.situation()))
        frames.append(np.stack([observation["pixels"][name] for name in CAMERAS]))
        states.append(observation["agent_pos"])
    return {"frames": np.stack(frames), "states": np.stack(states)}


# The checker would also build the other render modes, which it can only do for registered environments.
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
def test_gymnasium_s_own_checker_finds_nothing_to_complain_about() -> None:
    env = ConveyorEnv(render_mode="rgb_array", render_size=64)
    check_env(env, skip_render_check=False)
    env.close()


def test_the_same_seed_gives_the_same_pixels_and_states_in_a_fresh_environment(env: ConveyorEnv) -> None:
    first = trajectory(env, seed=5, steps=40)
    fresh = ConveyorEnv()
    second = trajectory(fresh, seed=5, steps=40)
    fresh.close()
    np.testing.assert_array_equal(first["frames"], second["frames"])
    np.testing.assert_array_equal(first["states"], second["states"])


def test_another_seed_gives_another_episode(env: ConveyorEnv) -> None:
    first = trajectory(env, seed=5, steps=1)
    assert (trajectory(env, seed=6, steps=1)["frames"] != first["frames"]).any()


def test_seeds_vary_belt_direction_speed_blocks_target_and_wording_within_their_ranges(env: ConveyorEnv) -> None:
    speeds, counts, targets, tasks = [], set(), set(), set()
    for seed in range(25):
        _, info = env.reset(seed=seed)
        speeds.append(env.belt_speed)
        counts.add(len(env.block_positions()))
        targets.add(info["target"])
        tasks.add(info["instruction"].replace(info["target"], "{}"))
        assert info["target"] in info["instruction"]
        assert info["target"] in env.block_positions()
    assert {-1.0, 1.0} == set(np.sign(speeds))
    assert 0.04 <= np.abs(speeds).min() < 0.06
    assert 0.08 < np.abs(speeds).max() <= 0.10
    assert counts == {2, 3}
    assert targets == {"red", "green", "blue"}
    assert len(tasks) == 5


@pytest.mark.parametrize("speed", [-0.1, 0.04])
def test_blocks_ride_the_belt_at_its_speed_by_friction(env: ConveyorEnv, speed: float) -> None:
    env.reset(seed=3, options={"belt_speed": speed})
    before = env.block_positions()
    for _ in range(30):
        env.step(to_action(np.array([*BIN, 0.125, 0.13])))
    for color, place in env.block_positions().items():
        # One second of travel; a block settles by less than a millimetre when it is first set down.
        np.testing.assert_allclose(place - before[color], [speed, 0, 0], atol=1e-3)


def test_half_a_second_of_belt_motion_changes_many_pixels_clearly(env: ConveyorEnv) -> None:
    before, _ = env.reset(seed=3, options={"belt_speed": 0.04})
    hold = before["agent_pos"]
    for _ in range(15):
        after, *_ = env.step(hold)
    changed = np.abs(after["pixels"]["overhead"].astype(int) - before["pixels"]["overhead"]).max(-1) > 25
    assert changed.mean() > 0.02


def test_the_state_reports_the_pose_that_the_action_asked_for(env: ConveyorEnv) -> None:
    env.reset(seed=0)
    goal = np.array([0.5, 0.6, 0.7, -0.2])
    for _ in range(60):
        observation, *_ = env.step(goal)
    # The servos carry 0.3 kg or less on compensated arms: they end within a millimetre of 0.11 to 0.6 m spans.
    np.testing.assert_allclose(observation["agent_pos"], goal, atol=0.02)


def test_the_arm_never_moves_faster_than_its_servos_may(env: ConveyorEnv) -> None:
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    before = env.situation().grip
    for _ in range(60):
        env.step(np.sign(rng.standard_normal(4)))
        after = env.situation().grip
        assert (np.abs(after - before) * 30 < 0.3).all()
        before = after


def test_the_wrist_camera_sees_the_held_block_and_the_overhead_one_the_free_blocks(env: ConveyorEnv) -> None:
    observation, _ = env.reset(seed=3, options={"target": "green"})
    channel = {"red": 0, "green": 1, "blue": 2}

    def seen(view: str, color: str) -> int:
        picture = observation["pixels"][view].astype(int)
        others = np.delete(picture, channel[color], axis=-1).max(-1)
        return int((picture[..., channel[color]] - others > 60).sum())

    for color in env.block_positions():
        assert 15 <= seen("overhead", color) <= 60, color  # 5 cm at 0.95 cm a pixel: about 28 pixels
    while observation["agent_pos"][3] > 0 or env.situation().block[2] < 0.06:
        observation, *_ = env.step(expert_action(env.situation()))
    assert seen("wrist", "green") > 400


def test_scales_convert_there_and_back() -> None:
    np.testing.assert_allclose(to_metres(np.array([-1.0, 1.0, -1.0, 1.0])), [LOW[0], HIGH[1], LOW[2], HIGH[3]])
    scaled = np.linspace(-1, 1, 4)
    np.testing.assert_allclose(to_action(to_metres(scaled)), scaled, atol=1e-15)


def test_the_wrong_block_in_the_bin_ends_the_episode_without_reward(env: ConveyorEnv) -> None:
    env.reset(seed=3)
    wrong = next(color for color in env.block_positions() if color != env.target)
    env._place(wrong, x=BIN[0], y=BIN[1], z=-0.09 + BLOCK / 2)
    _, reward, ended, cut, info = env.step(np.array([0, 0.8, 0.8, 1]))
    assert (reward, ended, cut, info["outcome"]) == (0.0, True, False, "wrong block")


def test_a_block_that_rides_away_is_lost_and_patience_ends_in_time(env: ConveyorEnv) -> None:
    outcomes = set()
    for seed in range(4):
        env.reset(seed=seed, options={"belt_speed": 0.13 if seed % 2 else 0.02})
        ended = cut = False
        while not (ended or cut):
            _, reward, ended, cut, info = env.step(np.array([0, 0.8, 0.8, 1]))
            assert reward == 0
        outcomes.add((info["outcome"], ended, cut))
    assert outcomes == {("lost", True, False), ("time", False, True)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 8}, "image_size must be between 16 and 640 pixels, got 8"),
        ({"render_size": 1000}, "render_size must be between 16 and 640 pixels, got 1000"),
        ({"colors": ("red", "pink")}, "colors must be different ones out of"),
        ({"colors": ("red", "red")}, "colors must be different ones out of"),
        ({"blocks": (0, 2)}, r"blocks must satisfy 1 <= fewest <= most <= 3, got \(0, 2\)"),
        ({"blocks": (2, 3), "colors": ("red", "blue")}, r"most <= 2, got \(2, 3\)"),
        ({"speed": (0.1, 0.05)}, "speed must satisfy 0 <= slowest <= fastest <= 0.15 m/s"),
        ({"time_limit": 0}, "time_limit must be at least 1 step, got 0"),
        ({"render_mode": "human"}, "render_mode must be None or one of .* got 'human'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConveyorEnv(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color": "red"}, r"options may hold target, belt_speed and arm, got \['color'\]"),
        ({"target": "yellow"}, "must be one of .* got 'yellow'"),
        ({"belt_speed": 1.0}, "must be within 0.15 m/s, got 1.0"),
        ({"belt_speed": float("nan")}, "must be within 0.15 m/s, got nan"),
        ({"arm": [0, 0, 0, 2]}, r"must be 4 numbers in \[-1, 1\]"),
    ],
)
def test_bad_options_are_named(env: ConveyorEnv, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(seed=0, options=options)


@pytest.mark.parametrize("action", [np.zeros(3), np.array([0, 0, 0, np.nan])])
def test_an_action_of_the_wrong_shape_or_not_finite_is_refused(env: ConveyorEnv, action: np.ndarray) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be 4 finite numbers"):
        env.step(action)


def test_a_renderer_that_cannot_start_says_what_to_do() -> None:
    code = "from env import ConveyorEnv; ConveyorEnv().reset(seed=0)"
    environment = os.environ | {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa", "PYTHONPATH": str(EXAMPLE)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 1
    assert "renderer 'egl' did not start" in result.stderr
    assert "Run scripts/system_libraries.sh" in result.stderr
