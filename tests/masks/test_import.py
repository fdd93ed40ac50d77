"""What importing the package costs."""

import subprocess
import sys
from pathlib import Path

import moteur.masks

HEAVY = ("transformers", "accelerate", "torch._dynamo", "torch._inductor", "scipy", "numpy.testing")
SIBLINGS = ("moteur.mot", "moteur.tokenizers", "moteur.flowmatch", "moteur.sampling", "moteur.recipes")


def test_a_fresh_import_loads_no_sibling_nothing_heavy_and_reaches_no_network() -> None:
    """Beyond what `import torch` loads by itself."""
    program = f"""
import socket, sys
def unreachable(*arguments, **options):
    raise AssertionError("import reached for the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = unreachable
import torch
before = set(sys.modules)
import moteur.masks
loaded = set(sys.modules) - before
print([name for name in {HEAVY + SIBLINGS!r} if name in loaded])
"""
    root = Path(moteur.masks.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)  # noqa: S603  # our own interpreter and program
    assert done.stderr == ""
    assert done.stdout == "[]\n"
