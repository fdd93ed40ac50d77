"""Both variants at toy size."""

import pytest
from toy_model import randomised, toy_config, toy_config_2b

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1


@pytest.fixture(scope="module", params=[toy_config, toy_config_2b], ids=["3B", "2B"])
def toy(request: pytest.FixtureRequest) -> InternVLAA1Config:
    return request.param()


@pytest.fixture(scope="module")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)
