"""What `moteur.flowmatch` offers, and what importing it costs."""

import subprocess
import sys

import moteur.flowmatch


def test_the_public_names_are_exactly_these() -> None:
    assert moteur.flowmatch.__all__ == [
        "ActionHead",
        "BetaTime",
        "Clock",
        "Increment",
        "Method",
        "Reduction",
        "Velocity",
        "data_from_velocity",
        "flow_loss",
        "integrate",
        "interpolate",
        "noise_from_velocity",
        "solve",
        "time_features",
        "velocity_target",
    ]
    assert all(hasattr(moteur.flowmatch, name) for name in moteur.flowmatch.__all__)


def test_importing_it_loads_no_other_block_and_no_model_zoo() -> None:
    code = (
        "import sys, moteur.flowmatch\n"
        "strangers = ('transformers', 'accelerate', 'scipy', 'moteur.masks', 'moteur.mot', 'moteur.tokenizers',"
        " 'moteur.sampling', 'moteur.recipes')\n"
        "print([name for name in strangers if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter, fixed code
    assert done.stdout.strip() == "[]"
