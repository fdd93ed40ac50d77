"""Robots and their data: LeRobot sets, schemas, statistics, samples, cached latents and the loader.

Importing this package needs no extra. Names that read or write sets need `pip install 'moteur[data]'` and say so when
they are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moteur.data.convention import Convention
from moteur.data.images import as_unit_floats, resize_with_pad
from moteur.data.lerobot.info import Feature, Info
from moteur.data.loader import Loader
from moteur.data.robot import Robot, Source
from moteur.data.samples import RobotTransform, Sample, Window
from moteur.data.statistics import FieldStatistics, RobotStatistics
from moteur.optional import require

if TYPE_CHECKING:
    from moteur.data.latents import LatentCache
    from moteur.data.lerobot.dataset import LeRobotSet
    from moteur.data.lerobot.open_files import BoundedCache
    from moteur.data.lerobot.writer import LeRobotWriter
    from moteur.data.robot_dataset import RobotDataset
    from moteur.data.set_statistics import compute_statistics

__all__ = [
    "BoundedCache",
    "Convention",
    "Feature",
    "FieldStatistics",
    "Info",
    "LatentCache",
    "LeRobotSet",
    "LeRobotWriter",
    "Loader",
    "Robot",
    "RobotDataset",
    "RobotStatistics",
    "RobotTransform",
    "Sample",
    "Source",
    "Window",
    "as_unit_floats",
    "compute_statistics",
    "resize_with_pad",
]

# Where the names are that need the extra.
_ROOMS = {
    "BoundedCache": "lerobot.open_files",
    "LatentCache": "latents",
    "LeRobotSet": "lerobot.dataset",
    "LeRobotWriter": "lerobot.writer",
    "RobotDataset": "robot_dataset",
    "compute_statistics": "set_statistics",
}
_PACKAGES = ("pyarrow", "av", "PIL", "tqdm", "filelock", "cachetools")


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in _PACKAGES:
        require(package, extra="data")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value
