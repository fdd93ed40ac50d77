"""Each block in a process of its own: light, a stranger to its siblings, silent on the network."""

import subprocess
import sys

import pytest

BLOCKS = ["masks", "mot", "tokenizers", "flowmatch", "sampling"]
HEAVY = [
    "transformers",
    "accelerate",
    "datasets",
    "pyarrow",
    "av",
    "PIL",
    "matplotlib",
    "pandas",
    "scipy",
    "moteur.recipes",
]
PROGRAM = """
import socket, sys
def refuse(*args, **kwargs): raise OSError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import {module}
print(*sys.modules)
"""


def loaded_by(module: str) -> set[str]:
    run = subprocess.run(  # noqa: S603 - our own program text
        [sys.executable, "-W", "error", "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_imports_no_sibling_no_recipe_and_nothing_heavy(block: str) -> None:
    loaded = loaded_by(f"moteur.{block}")
    strangers = [f"moteur.{other}" for other in BLOCKS if other != block]
    assert loaded.isdisjoint(strangers + HEAVY)
    assert ("torch" in loaded) == (block != "sampling")


def test_importing_the_package_alone_loads_no_block() -> None:
    assert not [name for name in loaded_by("moteur") if name.startswith("moteur.") or name == "torch"]


def test_importing_the_recipes_does_not_load_transformers_or_dataset_readers() -> None:
    assert loaded_by("moteur.recipes").isdisjoint(["transformers", "accelerate", "pyarrow", "av", "PIL"])


def test_blocks_that_write_no_files_need_no_posix_locks() -> None:
    without = "import sys; sys.modules.update(fcntl=None, resource=None); import moteur.{block}"
    found = {
        block: subprocess.run(  # noqa: S603 - our own program text
            [sys.executable, "-c", without.format(block=block)], capture_output=True, check=False
        ).returncode
        for block in BLOCKS
    }
    assert found == {"masks": 0, "mot": 0, "tokenizers": 1, "flowmatch": 0, "sampling": 0}
