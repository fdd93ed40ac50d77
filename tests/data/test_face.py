"""What the package offers, and what importing it does not bring along."""

import subprocess
import sys

import moteur.data as package


def test_the_public_names_are_these() -> None:
    assert package.__all__ == [
        "ROBOTS",
        "Collator",
        "Distribution",
        "FieldStatistics",
        "Normalizer",
        "RobotTransform",
        "Refinement",
        "Robot",
        "RobotDataset",
        "RobotStatistics",
        "Source",
        "TrainingBatch",
        "Window",
        "checkpoint_statistics",
        "column_statistics",
        "compute_statistics",
        "find_robot",
        "merge_statistics",
        "observation_of",
        "preparations_of",
        "released_statistics",
        "robot_from_modality",
        "targets_of",
    ]
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_it_loads_no_model_library() -> None:
    heavy = ("transformers", "accelerate", "lerobot", "datasets", "pandas")
    code = f"import sys, moteur.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
