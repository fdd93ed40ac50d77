"""A robot of toy size and sets recorded with it, short episodes included: for the tests of data and of recipes.

The root's conftest does not have them, so that the blocks are tested where no set can be written.
"""

from pathlib import Path

import pytest
from toy_recordings import TOY, Recorded, record_arm, record_person, record_toy

from moteur.data import Robot, RobotStatistics, compute_statistics


@pytest.fixture(scope="session")
def robot() -> Robot:
    """Two joints and a gripper, in two columns; view 1 is missing."""
    return TOY


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded set."""
    return record_toy(tmp_path_factory.mktemp("robots") / "set")


@pytest.fixture(scope="session")
def statistics(robot: Robot, toy_root: Path) -> RobotStatistics:
    """Statistics of the recorded set, over chunks of six steps."""
    return compute_statistics([toy_root], robot, chunk=6, progress=False)


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_arm(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_person(tmp_path_factory.mktemp("person") / "set")
