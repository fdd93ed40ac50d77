"""What importing the reader brings along, and what works without the `data` extra."""

import subprocess
import sys
from pathlib import Path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout  # noqa: S603


def test_importing_the_reader_loads_no_model_library() -> None:
    heavy = ("transformers", "accelerate", "lerobot", "datasets", "pandas")
    code = f"import sys, moteur.data.lerobot.writer; print([name for name in {heavy} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_info_json_is_read_without_the_data_extra() -> None:
    # The package around it is left out: it imports more.
    missing = ("pyarrow", "av", "PIL", "filelock", "cachetools")
    path = Path(__file__).parents[3] / "moteur/data"
    code = f"""
import sys, types
sys.modules |= dict.fromkeys({missing})
package = sys.modules["moteur.data"] = types.ModuleType("moteur.data")
package.__path__ = [{str(path)!r}]
from moteur.data.lerobot.info import frame_offsets, read_info
print(frame_offsets([0.5], fps=30))
"""
    assert run(code).strip() == "(15,)"
