"""What importing the package brings along, and what a name says whose extra is missing."""

import subprocess
import sys

import pytest

import moteur.data

EXTRA = ("pyarrow", "av", "PIL", "tqdm", "filelock", "cachetools")
WITHOUT_EXTRA = f"""
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {EXTRA}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", moteur.data.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(moteur.data, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'moteur.data' has no attribute 'Teleporter'"):
        moteur.data.Teleporter  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_it_loads_neither_readers_nor_model_libraries() -> None:
    heavy = ("pyarrow", "av", "PIL", "transformers", "accelerate", "lerobot", "datasets", "pandas")
    assert run(f"import sys, moteur.data; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_importing_the_readers_loads_no_model_library() -> None:
    heavy = ("transformers", "accelerate", "lerobot", "datasets", "pandas")
    program = f"import sys; from moteur.data import LeRobotWriter; print([n for n in {heavy} if n in sys.modules])"
    assert run(program) == "[]"


ACTING = """
import numpy as np
from moteur.data import FieldStatistics, Robot, RobotStatistics, RobotTransform, Source

robot = Robot("arm", (Source("state", 2),), (Source("action", 2),), ("front", None, None), relative=(1, -1))
field = FieldStatistics(9, mean=(1.0, 2.0), std=(0.5, 0.5), min=(0.0, 0.0), max=(3.0, 3.0))
transform = RobotTransform(robot, RobotStatistics("arm", 4, field, field), dims=3)
print(transform.state(np.array([1.0, 2.0])).tolist(), transform.commands(np.zeros((4, 3)), [5.0, 6.0])[0].tolist())
"""


def test_acting_needs_no_extra() -> None:
    assert run(WITHOUT_EXTRA + ACTING) == "[0.0, 0.0, 0.0] [6.0, 2.0]"


@pytest.mark.parametrize("name", ["compute_statistics", "LeRobotSet", "RobotDataset"])
def test_a_name_that_needs_the_extra_says_so(name: str) -> None:
    program = f"""
try:
    from moteur.data import {name}
except ModuleNotFoundError as error:
    print(error.name, "|", error)
"""
    found = run(WITHOUT_EXTRA + program)
    assert found.startswith("pyarrow | pyarrow is not installed: pip install ")
    assert "[data]" in found
