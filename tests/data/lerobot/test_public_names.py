"""What the package offers, and what importing it does not bring along."""

import subprocess
import sys

import moteur.data.lerobot as package


def test_the_public_names_are_these() -> None:
    assert package.__all__ == [
        "BoundedCache",
        "Episodes",
        "Feature",
        "Info",
        "LeRobotSet",
        "Modality",
        "SetWriter",
        "Slice",
        "VideoSpans",
        "available_backends",
        "fetch",
        "frame_offsets",
        "open_video",
        "read_info",
    ]
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_it_loads_no_model_library() -> None:
    heavy = ("transformers", "accelerate", "lerobot", "datasets", "pandas")
    code = f"import sys, moteur.data.lerobot; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


WITHOUT = """
import importlib, sys
loaded = set(sys.modules)
for package in ("lerobot", "robots", "latents"):
    for hidden in ("pyarrow", "av", "PIL"):
        for name in set(sys.modules) - loaded:
            if name.startswith("moteur."):
                del sys.modules[name]
        kept = sys.modules.pop(hidden, None)
        sys.modules[hidden] = None  # as if it were not installed
        try:
            importlib.import_module("moteur.recipes." + package)
        except ImportError as error:
            print(package, error)
        del sys.modules[hidden]
        if kept is not None:
            sys.modules[hidden] = kept
"""


def test_what_to_install_is_said_where_the_extra_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.splitlines() == [
        f"{package} {hidden} is not installed: pip install '.[data]' in a clone of moteur"
        for package in ("lerobot", "robots", "latents")
        for hidden in ("pyarrow", "av", "PIL")
    ]
