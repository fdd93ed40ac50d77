"""Sets of two robots, recorded once."""

import pytest
from toy_recordings import Recorded, record_arm, record_person


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_arm(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_person(tmp_path_factory.mktemp("person") / "set")
