"""The scripted expert: a smooth function of the exact situation, able to take over from any state.

``python examples/conveyor/expert.py --seeds 200`` measures how often it succeeds.
"""

import argparse
import json
import platform
import time
from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
from cameras import BACKEND, mujoco
from env import BIN, BIN_HALF, BLOCK, FPS, HIGH, LOW, ConveyorEnv, Situation, to_action
from tqdm import tqdm

HOVER = 0.125  # height for moving about, clear of blocks and bin
GRASP = 0.025  # height for closing
LEAD = 0.12  # seconds: how far the servos lag behind a moving target
OPEN, CLOSED = HIGH[3], LOW[3]


def expert_action(situation: Situation) -> np.ndarray:
    """Where the gripper should go now, on the action's scale.

    Without the block: go above where it will be when the servos have caught up, sink as the error vanishes, close once
    low. With it: rise, go to the bin, open. What has been done is read off the situation, never remembered.
    """
    grip, gap, block = situation.grip, situation.gap, situation.block
    near = float(np.hypot(*(block[:2] - grip[:2])))
    holds = near < 0.035 and abs(block[2] - grip[2]) < 0.03 and gap < BLOCK * 1.09 + 0.002
    binned = bool((np.abs(block[:2] - BIN) < BIN_HALF).all())  # in it or falling into it
    low = 1 - ramp(grip[2], 0.03, 0.09)  # 1 at the belt, 0 where it is safe to move sideways
    if holds or binned:  # holding comes first: the block passes over the bin's rim
        over_bin = float(np.hypot(*(grip[:2] - BIN))) < 0.035
        goal = grip[:2] + (1 - low) * (BIN - grip[:2])
        return scaled(goal, HOVER, OPEN if over_bin or not holds else CLOSED)
    goal = block[:2] + LEAD * situation.velocity[:2]
    error = float(np.hypot(*(goal - grip[:2] - LEAD * situation.velocity[:2])))
    far = ramp(error, 0.02, 0.06)
    height = GRASP + far * (HOVER - GRASP)
    closing = grip[2] < GRASP + 0.012 and error < 0.03
    goal = goal - low * ramp(error, 0.04, 0.08) * (goal - grip[:2])  # rise before moving far
    return scaled(goal, height, CLOSED if closing else OPEN)


def ramp(value: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end`, smooth between."""
    part = float(np.clip((value - start) / (end - start), 0, 1))
    return part * part * (3 - 2 * part)


def scaled(ground: np.ndarray, height: float, gap: float) -> np.ndarray:
    """Bring a goal in metres to the action's scale and range."""
    return np.clip(to_action(np.array([*ground, height, gap])), -1, 1).astype(np.float32)


def study(env: gymnasium.Env[dict, np.ndarray], seeds: range, *, progress: bool = True) -> dict:
    """Let the expert act once on every seed and report how it went."""
    outcomes: Counter[str] = Counter()
    lengths, start = [], time.perf_counter()
    for seed in tqdm(seeds, desc="expert", unit="episode", disable=not progress):
        _, info = env.reset(seed=seed)
        ended = cut = False
        steps = 0
        while not (ended or cut):
            _, _, ended, cut, info = env.step(expert_action(env.unwrapped.situation()))
            steps += 1
        outcomes[info["outcome"]] += 1
        lengths.append(steps)
    seconds = time.perf_counter() - start
    low, high = wilson(outcomes["success"], len(seeds))
    return {
        "seeds": [seeds.start, seeds.stop],
        "success_rate": outcomes["success"] / len(seeds),
        "confidence_interval_95": [round(low, 4), round(high, 4)],
        "outcomes": dict(outcomes),
        "steps": {"mean": float(np.mean(lengths)), "least": min(lengths), "most": max(lengths)},
        "observations_per_second": round(sum(lengths) / seconds, 1),
    }


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's confidence interval of a success rate (Wilson 1927)."""
    rate, spread = successes / trials, z * z / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = z * np.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def main() -> None:
    """Read the command line, run the study, print it and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="how many episodes")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="recordings count from 0, tests from here")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    env = ConveyorEnv(image_size=arguments.image_size)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    command = f"python examples/conveyor/expert.py --seeds {arguments.seeds} --first-seed {arguments.first_seed}"
    result = {
        "command": f"{command} --image-size {arguments.image_size}",
        "device": f"CPU, {platform.machine()}, renderer {BACKEND}",
        "versions": {"python": platform.python_version(), "mujoco": mujoco.__version__, "numpy": np.__version__}
        | {"gymnasium": gymnasium.__version__},
        "shapes": f"3 pictures of {arguments.image_size}x{arguments.image_size} at {FPS} Hz, 4 state, 4 action numbers",
        **study(env, seeds),
    }
    env.close()
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
