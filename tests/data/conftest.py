"""A robot of toy size and a set recorded with it, short episodes included."""

from pathlib import Path

import numpy as np
import pytest
from toy_recordings import Recorded, record_arm, record_person

from moteur.data import Feature, LeRobotWriter, Robot, RobotStatistics, Source, compute_statistics

LENGTHS = (9, 2, 14)
STEPS = 6
CAMERA = Feature("image", (24, 32, 3))


@pytest.fixture(scope="session")
def robot() -> Robot:
    """Two joints and a gripper, in two columns; view 1 is missing."""
    return Robot(
        name="toy",
        state=(Source("joints", 2), Source("gripper", 1)),
        action=(Source("joints_target", 2), Source("gripper_target", 1)),
        cameras=("head", None, "wrist"),
        relative=(2, -1),
        robot_types=("toy",),
        rate=10,
    )


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded set."""
    root = tmp_path_factory.mktemp("robots") / "set"
    features = {
        "joints": Feature("float32", (2,)),
        "gripper": Feature("float32", (1,)),
        "joints_target": Feature("float32", (2,)),
        "gripper_target": Feature("float32", (1,)),
        "head": CAMERA,
        "wrist": CAMERA,
        "side": CAMERA,
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, fps=10, features=features, robot_type="toy") as writer:
        for length in LENGTHS:
            for _ in range(length):
                frame = {key: rng.normal(3.0, 2.0, size=feature.shape) for key, feature in features.items()}
                for camera in ("head", "wrist", "side"):
                    frame[camera] = rng.integers(0, 256, size=CAMERA.shape, dtype=np.uint8)
                writer.add(frame, "reach")
            writer.save_episode()
    return root


@pytest.fixture(scope="session")
def statistics(robot: Robot, toy_root: Path) -> RobotStatistics:
    """Statistics of the recorded set."""
    return compute_statistics([toy_root], robot, steps=STEPS, progress=False)


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_arm(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_person(tmp_path_factory.mktemp("person") / "set")
