"""Recorded sets of three robots with different schemas, and an image tokenizer of toy size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moteur.data import (
    Feature,
    LatentCache,
    LeRobotWriter,
    Robot,
    RobotDataset,
    RobotTransform,
    Source,
    Window,
    compute_statistics,
)

TIMES = (-3, 0, 3)
STEPS = 4  # the toy model's chunk


@dataclass(frozen=True)
class Recorded:
    """A set and its robot."""

    root: Path
    robot: Robot

    def prepared(
        self, offsets: tuple[int, ...] = TIMES, *, seconds: tuple[float, ...] | None = None, **options: object
    ) -> RobotDataset:
        """Samples with frames of these times, at the toy model's sizes."""
        statistics = compute_statistics([self.root], self.robot, chunk=STEPS, progress=False)
        window = Window(offsets=offsets, seconds=seconds, chunk=STEPS)
        settings = {"size": 32, "dims": 5, **options}
        return RobotDataset(self.root, RobotTransform(self.robot, statistics, window=window, **settings))  # pyright: ignore[reportArgumentType]


def encode(frames: Tensor) -> Tensor:
    """Means of squares of 8 pixels in red, green and blue, and their product; the same bits in any batch."""
    cells = F.avg_pool2d(frames, 8)
    return torch.cat([cells, cells.prod(dim=1, keepdim=True)], dim=1)


def opened(folder: Path, dataset: RobotDataset, **options: object) -> LatentCache:
    """Latents of the toy tokenizer for a dataset's pictures."""
    source = dataset.source
    reading = {"episodes": source.episodes, "backend": source.backend, "progress": False}
    made = {"encode": encode, "digest": "toy", **reading, **options}
    return LatentCache(folder, source.root, dataset.transform, **made)  # pyright: ignore[reportArgumentType]


def written(
    folder: Path, dataset: RobotDataset, *, batch_size: int = 32, rank: int = 0, ranks: int = 1, **options: object
) -> LatentCache:
    """Write latents of the toy tokenizer."""
    cache = opened(folder, dataset, **options)
    cache.write(batch_size=batch_size, rank=rank, ranks=ranks)
    return cache


def with_latents(dataset: RobotDataset, cache: LatentCache) -> RobotDataset:
    """The dataset's samples with cached latents."""
    source = dataset.source
    return RobotDataset(source.root, dataset.transform, episodes=source.episodes, backend=source.backend, latents=cache)


TOY = Robot(
    name="toy",
    state=(Source("joints", 2), Source("gripper", 1)),
    action=(Source("joints_target", 2), Source("gripper_target", 1)),
    cameras=("head", None, "wrist"),
    relative=(2, -1),
    robot_types=("toy",),
    rate=10,
)
TOY_LENGTHS = (9, 2, 14)


def record_toy(root: Path) -> Path:
    """Two joints and a gripper, in two columns each; three cameras, their pictures in the table; three episodes."""
    camera = Feature("image", (24, 32, 3))
    features = {source.key: Feature("float32", (source.size,)) for source in (*TOY.state, *TOY.action)}
    features |= dict.fromkeys(("head", "wrist", "side"), camera)
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, fps=10, features=features, robot_type="toy") as writer:
        for length in TOY_LENGTHS:
            for _ in range(length):
                frame = {key: rng.normal(3.0, 2.0, size=feature.shape) for key, feature in features.items()}
                for name in ("head", "wrist", "side"):
                    frame[name] = rng.integers(0, 256, size=camera.shape, dtype=np.uint8)
                writer.add(frame, "reach")
            writer.save_episode()
    return root


def record_arm(root: Path, seed: int) -> Recorded:
    """Two cameras as videos, the middle one missing; three actions; three episodes."""
    sizes = {"head": (24, 32, 3), "wrist": (32, 32, 3)}
    features = {camera: Feature("video", size) for camera, size in sizes.items()}
    features |= {name: Feature("float32", (3,)) for name in ("pose", "target")}
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, fps=10, features=features, robot_type="arm", codec="libx264") as writer:
        for length in (9, 2, 14):
            for _ in range(length):
                frame = {name: rng.normal(size=3) for name in ("pose", "target")}
                frame |= {name: rng.integers(0, 256, size=size, dtype=np.uint8) for name, size in sizes.items()}
                writer.add(frame, "reach far")
            writer.save_episode()
    robot = Robot(
        name="arm",
        state=(Source("pose", 3),),
        action=(Source("target", 3),),
        cameras=("head", None, "wrist"),
        relative=(2, -1),
    )
    return Recorded(root, robot)


def record_person(root: Path) -> Recorded:
    """A video of a person: no actions, one camera in the middle, its pictures in the table."""
    features = {"eyes": Feature("image", (40, 30, 3)), "hands": Feature("float32", (5,))}
    rng = np.random.default_rng(1)
    with LeRobotWriter(root, fps=10, features=features) as writer:
        for _ in range(11):
            picture = rng.integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
            writer.add({"eyes": picture, "hands": rng.normal(size=5)}, "pour")
        writer.save_episode()
    return Recorded(root, Robot("person", (Source("hands", 5),), (), (None, "eyes", None)))
