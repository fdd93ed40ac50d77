"""The toy model, built once, and recordings of toy size."""

from pathlib import Path

import pytest
from toy_model import randomised, toy_config
from toy_recordings import TOY, Recorded, record_arm, record_person, record_toy

from moteur.data import Robot, RobotStatistics, compute_statistics
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1


@pytest.fixture(scope="session")
def toy() -> InternVLAA1Config:
    return toy_config()


@pytest.fixture(scope="session")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)


@pytest.fixture(scope="session")
def robot() -> Robot:
    """Two joints and a gripper, in two columns; view 1 is missing."""
    return TOY


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set recorded with this robot."""
    return record_toy(tmp_path_factory.mktemp("robots") / "set")


@pytest.fixture(scope="session")
def statistics(robot: Robot, toy_root: Path) -> RobotStatistics:
    """Statistics of the recorded set, over chunks of six steps."""
    return compute_statistics([toy_root], robot, steps=6, progress=False)


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_arm(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_person(tmp_path_factory.mktemp("person") / "set")
