"""The toy model, built once, and recordings of toy size."""

import pytest
from toy_fixtures import arm, person, robot, statistics, toy_root
from toy_model import randomised, toy_config

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1

__all__ = ["arm", "person", "robot", "statistics", "toy_root"]


@pytest.fixture(scope="session")
def toy() -> InternVLAA1Config:
    return toy_config()


@pytest.fixture(scope="session")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)
