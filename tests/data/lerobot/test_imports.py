"""What importing the reader brings along, and what works without the `data` extra."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603


def test_importing_the_reader_loads_no_model_library() -> None:
    heavy = ("transformers", "accelerate", "lerobot", "datasets", "pandas")
    code = f"import sys, moteur.data.lerobot.writer; print([name for name in {heavy} if name in sys.modules])"
    assert run(code).strip() == "[]"
