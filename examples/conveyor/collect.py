"""Record demonstrations: one .npz file for each episode, resumable, only successful ones.

``python examples/conveyor/collect.py demonstrations --episodes 500``

While the expert acts, its commands are disturbed and half of the episodes start with the arm somewhere else, so that
the recording also shows how to come back from errors. The stored action is always the undisturbed one (the idea of
DART, Laskey et al. 2017, arXiv:1703.09327).
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from env import CAMERAS, HIGH, LOW, ConveyorEnv, to_action
from expert import expert_action
from tqdm import tqdm

NOISE_TIME = 9  # steps over which the disturbance forgets itself


def collect(
    folder: str | Path,
    episodes: int,
    *,
    first_seed: int = 0,
    image_size: int = 64,
    colors: tuple[str, ...] = ("red", "green", "blue"),
    blocks: tuple[int, int] = (2, 3),
    every: int = 3,
    noise: float = 0.015,
    moved_starts: float = 0.5,
    progress: bool = True,
) -> list[Path]:
    """Record until `folder` holds `episodes` demonstrations; return their paths in order of seed.

    Args:
        folder: Where ``episode_<seed>.npz`` files go. Finished ones are kept, so a second call goes on.
        episodes: How many demonstrations in all.
        first_seed: Seeds count up from here; one that the disturbed expert fails is recorded in ``failed.json``.
        image_size: Height and width of the pictures.
        colors: Colours in play, as for `ConveyorEnv`.
        blocks: Fewest and most blocks on the belt, as for `ConveyorEnv`.
        every: Draw a picture at steps 0, `every`, 2 `every`, ... Drawing takes most of the time, and many episodes
            teach more than many nearly equal pictures. States and actions are kept for all steps.
        noise: Standard deviation of the disturbance of x, y and z, in metres. The gap is not disturbed.
        moved_starts: Share of episodes in which the arm starts in a random pose.
        progress: Show a progress bar.

    Raises:
        ValueError: For a bad argument, or if the folder was recorded with other settings.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}")
    if noise < 0 or not 0 <= moved_starts <= 1:
        raise ValueError(f"noise must be >= 0 and moved_starts in [0, 1], got {noise} and {moved_starts}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"first_seed": first_seed, "image_size": image_size, "every": every}
    settings |= {"colors": list(colors), "blocks": list(blocks), "noise": noise, "moved_starts": moved_starts}
    _agree(folder / "settings.json", settings)
    failures = folder / "failed.json"
    failed: list[int] = json.loads(failures.read_text()) if failures.exists() else []
    env = ConveyorEnv(image_size=image_size, colors=colors, blocks=blocks)
    paths: list[Path] = []
    seed = first_seed
    with tqdm(total=episodes, desc="demonstrations", unit="episode", disable=not progress) as bar:
        while len(paths) < episodes:
            path = folder / f"episode_{seed:06d}.npz"
            if not path.exists() and seed not in failed:
                episode = record(env, seed, every=every, noise=noise, moved_starts=moved_starts)
                if episode["success"]:
                    _write(path, lambda file, episode=episode: np.savez_compressed(file, **episode))
                else:
                    failed.append(seed)
                    _write(failures, lambda file: file.write(json.dumps(failed).encode()))
            if path.exists():
                paths.append(path)
                bar.update()
            seed += 1
    env.close()
    return paths


def record(env: ConveyorEnv, seed: int, *, every: int, noise: float, moved_starts: float) -> dict[str, Any]:
    """Let the expert act through one disturbed episode.

    Returns:
        For T steps: ``state`` (T, 4) and ``action`` (T, 4), float32 on the action's scale; ``executed`` (T, 4), the
        disturbed action; under each camera's name one uint8 array (F, size, size, 3), whose picture i was drawn at
        step i * ``every``; and ``every``, ``instruction``, ``target``, ``seed``, ``belt_speed``, ``success``.
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
        if len(kept["state"]) % every == 0:
            pixels = env.observe()["pixels"]
            for name in CAMERAS:
                kept[name].append(pixels[name])
        action = expert_action(env.situation())
        executed = np.clip(action + disturbance, -1, 1).astype(np.float32)
        for name, value in {"state": env.proprioception(), "action": action, "executed": executed}.items():
            kept[name].append(value)
        outcome = env.advance(executed)
        disturbance = keep * disturbance + np.sqrt(1 - keep**2) * scale * rng.standard_normal(4)
    return {
        **{name: np.stack(values) for name, values in kept.items()},
        "every": every,
        "instruction": info["instruction"],
        "target": info["target"],
        "seed": seed,
        "belt_speed": env.belt_speed,
        "success": outcome == "success",
    }


def load(path: str | Path) -> dict[str, Any]:
    """Read one recorded episode back, as `record` returned it."""
    with np.load(path) as file:
        return {name: file[name] if file[name].ndim else file[name].item() for name in file.files}


def _free_pose(rng: np.random.Generator, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a pose of the gripper, in metres, in which it touches nothing."""
    while True:
        pose = rng.uniform(LOW, HIGH)
        away = pose[1] < 0.10 and all(abs(block[0] - pose[0]) > 0.09 for block in blocks)
        if pose[2] > 0.085 or away:
            return pose


def _agree(path: Path, settings: dict[str, Any]) -> None:
    """Keep the settings beside the recordings, and refuse to mix two kinds."""
    if not path.exists():
        _write(path, lambda file: file.write(json.dumps(settings).encode()))
    elif (found := json.loads(path.read_text())) != settings:
        raise ValueError(f"{path} was recorded with {found}, asked for {settings}: choose another folder")


def _write(path: Path, fill: Any) -> None:  # noqa: ANN401 - any callable that takes a binary file
    """Write beside and rename: a file that exists is complete."""
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        fill(file)
    os.replace(draft, path)  # noqa: PTH105 - the same, said plainly


def main() -> None:
    """Read the command line, record, and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--every", type=int, default=3, help="steps from one picture to the next")
    arguments = parser.parse_args()
    start = time.perf_counter()
    paths = collect(
        arguments.folder,
        arguments.episodes,
        first_seed=arguments.first_seed,
        image_size=arguments.image_size,
        every=arguments.every,
    )
    minutes = (time.perf_counter() - start) / 60
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(f"{len(paths)} episodes in {arguments.folder}: {size:.0f} MiB, {minutes:.1f} min")


if __name__ == "__main__":
    main()
