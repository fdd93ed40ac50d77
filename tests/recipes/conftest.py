"""The toy model, built once."""

import pytest
from toy_model import randomised, toy_config

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1


@pytest.fixture(scope="session")
def toy() -> InternVLAA1Config:
    return toy_config()


@pytest.fixture(scope="session")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)
