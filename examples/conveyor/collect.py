"""Record demonstrations as a LeRobot set: resumable, only successful ones.

``python examples/conveyor/collect.py demonstrations --episodes 500``

While the expert acts, its commands are disturbed and half of the episodes start with the arm somewhere else, so that
the recording also shows how to come back from errors. The stored action is always the undisturbed one (the idea of
DART, Laskey et al. 2017, arXiv:1703.09327).
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from env import CAMERAS, FPS, HIGH, LOW, ConveyorEnv, to_action
from expert import expert_action
from tqdm import tqdm

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.files import write_whole

NOISE_TIME = 9  # steps over which the disturbance forgets itself
AXES = ("x", "y", "z", "gap")
PICTURES = {name: f"observation.images.{name}" for name in CAMERAS}


def collect(
    folder: str | Path,
    episodes: int,
    *,
    first_seed: int = 0,
    image_size: int = 64,
    colors: tuple[str, ...] = ("red", "green", "blue"),
    blocks: tuple[int, int] = (2, 3),
    noise: float = 0.015,
    moved_starts: float = 0.5,
    progress: bool = True,
) -> None:
    """Record until `folder` holds `episodes` demonstrations, in order of seed.

    Args:
        folder: Of the set. Finished episodes are kept, so a second call goes on.
        episodes: How many demonstrations in all.
        first_seed: Seeds count up from here; those that the disturbed expert fails are left out.
        image_size: Height and width of the pictures.
        colors: Colours in play, as for `ConveyorEnv`.
        blocks: Fewest and most blocks on the belt, as for `ConveyorEnv`.
        noise: Standard deviation of the disturbance of x, y and z, in metres. The gap is not disturbed.
        moved_starts: Share of episodes in which the arm starts in a random pose.
        progress: Show a progress bar.

    Raises:
        ValueError: For a bad argument, or if the folder was recorded with other settings.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if noise < 0 or not 0 <= moved_starts <= 1:
        raise ValueError(f"noise must be >= 0 and moved_starts in [0, 1], got {noise} and {moved_starts}")
    folder = Path(folder)
    settings = {"first_seed": first_seed, "image_size": image_size, "colors": list(colors), "blocks": list(blocks)}
    settings |= {"noise": noise, "moved_starts": moved_starts}
    kept = _recorded_seeds(folder, settings)
    if len(kept) >= episodes:
        return
    seed = kept[-1] + 1 if kept else first_seed
    env = ConveyorEnv(image_size=image_size, colors=colors, blocks=blocks)
    # Key frames as often as in LeRobot's own sets.
    writer = LeRobotWriter(
        folder,
        fps=FPS,
        features=features(image_size),
        robot_type="conveyor",
        resume=(folder / "meta" / "info.json").exists(),
        codec="libx264",
        gop=2,
    )
    with writer, tqdm(total=episodes, initial=len(kept), desc="recording", unit="episode", disable=not progress) as bar:
        write_whole(folder / "meta" / "recording.json", json.dumps(settings))
        while writer.num_episodes < episodes:
            episode = record(env, seed, noise=noise, moved_starts=moved_starts)
            if episode["success"]:
                _append(writer, episode)
                bar.update()
            seed += 1
    env.close()


def features(image_size: int) -> dict[str, Feature]:
    """Columns of the set."""
    four = Feature("float32", (4,), list(AXES))
    columns = {"observation.state": four, "action": four, "executed": four, "seed": Feature("int64", (1,))}
    return columns | {key: Feature("video", (image_size, image_size, 3)) for key in PICTURES.values()}


def record(env: ConveyorEnv, seed: int, *, noise: float, moved_starts: float) -> dict[str, Any]:
    """Let the expert act through one disturbed episode.

    Returns:
        For T steps: ``state`` (T, 4) and ``action`` (T, 4), float32 on the action's scale; ``executed`` (T, 4), the
        disturbed action; under each camera's name one uint8 array (T, size, size, 3); and ``instruction``, ``seed``,
        ``success``.
    """
    rng = np.random.default_rng([seed, 1])
    _, info = env.reset(seed=seed)
    if rng.random() < moved_starts:
        pose = _free_pose(rng, list(env.block_positions().values()))
        _, info = env.reset(seed=seed, options={"arm": to_action(pose)})
    scale = np.array([noise, noise, noise, 0.0]) * 2 / (HIGH - LOW)
    keep = np.exp(-1 / NOISE_TIME)
    disturbance = scale * rng.standard_normal(4)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in (*CAMERAS, "state", "action", "executed")}
    outcome = None
    while outcome is None:
        seen = env.observe()
        action = expert_action(env.situation())
        executed = np.clip(action + disturbance, -1, 1).astype(np.float32)
        numbers = {"state": seen["agent_pos"], "action": action, "executed": executed}
        for name, value in (seen["pixels"] | numbers).items():
            kept[name].append(value)
        outcome = env.advance(executed)
        disturbance = keep * disturbance + np.sqrt(1 - keep**2) * scale * rng.standard_normal(4)
    whole = {name: np.stack(values) for name, values in kept.items()}
    return {**whole, "instruction": info["instruction"], "seed": seed, "success": outcome == "success"}


def _append(writer: LeRobotWriter, episode: dict[str, Any]) -> None:
    names = {"observation.state": "state", "action": "action", "executed": "executed"}
    names |= {key: camera for camera, key in PICTURES.items()}
    for step in range(len(episode["state"])):
        frame = {key: episode[name][step] for key, name in names.items()}
        writer.add(frame | {"seed": episode["seed"]}, task=episode["instruction"])
    writer.save_episode()


def _free_pose(rng: np.random.Generator, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a pose of the gripper, in metres, in which it touches nothing."""
    while True:
        pose = rng.uniform(LOW, HIGH)
        away = pose[1] < 0.10 and all(abs(block[0] - pose[0]) > 0.09 for block in blocks)
        if pose[2] > 0.085 or away:
            return pose


def _recorded_seeds(folder: Path, settings: dict[str, Any]) -> list[int]:
    """Seeds of the episodes that are there; refuses to mix two kinds of recordings."""
    path = folder / "meta" / "recording.json"
    if not path.exists():
        return []
    if (found := json.loads(path.read_text())) != settings:
        raise ValueError(f"{path} was recorded with {found}, asked for {settings}: choose another folder")
    kept = LeRobotSet(folder, keys=["seed"])
    return [int(kept.column("seed", episode)[0]) for episode in kept.episodes]


def main() -> None:
    """Read the command line, record, and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64)
    arguments = parser.parse_args()
    start = time.perf_counter()
    collect(
        arguments.folder,
        arguments.episodes,
        first_seed=arguments.first_seed,
        image_size=arguments.image_size,
    )
    minutes = (time.perf_counter() - start) / 60
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file()) / 2**20
    print(f"{arguments.episodes} episodes in {arguments.folder}: {size:.0f} MiB, {minutes:.1f} min")


if __name__ == "__main__":
    main()
