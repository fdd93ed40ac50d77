"""A small LeRobot set whose pictures carry their own episode and frame number."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moteur.data import Feature, LeRobotWriter

FPS = 10
LENGTHS = (7, 12, 1, 9)
TOP, SIDE = "observation.images.top", "observation.images.side"
FEATURES = {
    "observation.state": Feature("float32", (3,), ["x", "y", "z"]),
    "action": Feature("float32", (3,), ["x", "y", "z"]),
    "gripper": Feature("float32", (1,)),
    "matrix": Feature("float64", (2, 3)),
    "success": Feature("bool", (1,)),
    "note": Feature("string", (1,)),
    TOP: Feature("video", (64, 64, 3)),
    SIDE: Feature("image", (16, 24, 3)),
}


def numbered_picture(episode: int, frame: int) -> np.ndarray:
    """Sixteen blocks, black or white: four bits of the episode, twelve of the frame; lossy coding keeps them."""
    bits = np.array([(episode * 4096 + frame) >> place & 1 for place in range(16)], dtype=np.uint8)
    block = np.kron(bits.reshape(4, 4), np.ones((16, 16), dtype=np.uint8)) * 255
    return np.repeat(block[..., None], 3, axis=2)


def read_number(picture: Tensor) -> tuple[int, int]:
    """What `numbered_picture` wrote: episode and frame."""
    blocks = picture.float().mean(dim=0).reshape(4, 16, 4, 16).mean(dim=(1, 3)) > 127
    number = int((blocks.reshape(-1).long() << torch.arange(16)).sum())
    return number // 4096, number % 4096


def frame(episode: int, step: int) -> dict[str, Any]:
    """Every feature's value for one frame, different for each."""
    rng = np.random.default_rng([episode, step])
    return {
        "observation.state": rng.normal(size=3).astype(np.float32),
        "action": torch.from_numpy(rng.normal(size=3).astype(np.float32)),
        "gripper": float(np.float32(rng.uniform())),
        "matrix": rng.normal(size=(2, 3)),
        "success": step == LENGTHS[episode] - 1,
        "note": f"episode {episode} frame {step}",
        TOP: numbered_picture(episode, step),
        SIDE: rng.integers(0, 256, size=(16, 24, 3), dtype=np.uint8),
    }


def task(episode: int) -> str:
    """Two tasks in turn."""
    return ("pick", "place")[episode % 2]


def record(root: Path, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> Path:  # noqa: ANN401
    """Record episodes into a new set."""
    with LeRobotWriter(root, fps=FPS, features=FEATURES, robot_type="toy", codec="libx264", **options) as writer:
        for episode, length in enumerate(lengths):
            for step in range(length):
                writer.add(frame(episode, step), task(episode))
            writer.save_episode()
    return root


def record_more(writer: LeRobotWriter) -> None:
    """Record the next of an endless row of short episodes."""
    episode = writer.num_episodes
    for step in range(4 + episode % 3):
        writer.add(frame(episode % 4, step), task(episode))
    writer.save_episode()
