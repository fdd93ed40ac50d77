"""A small recorded set, and copies of sets to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_set import record


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded set; tests may not change it."""
    return record(tmp_path_factory.mktemp("recorded") / "set")


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a set to a folder that the test may damage."""

    def copy(root: Path) -> Path:
        return Path(shutil.copytree(root, tmp_path / "copy"))

    return copy
