"""Robots and their data: LeRobot sets, schemas, statistics, samples, cached latents and the loader.

Importing this package needs no extra. Names that read or write sets need `pip install 'moteur[data]'` and say so when
they are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moteur.data.images import as_unit_floats, resize_with_pad
from moteur.data.known_robots import ROBOTS, find_robot
from moteur.data.lerobot.info import Feature, read_info
from moteur.data.loader import Loader, Throughput
from moteur.data.robot import Robot, Source
from moteur.data.samples import RobotTransform, Sample, Window, stack_samples
from moteur.data.statistics import FieldStatistics, RobotStatistics, merge_statistics
from moteur.optional import require

if TYPE_CHECKING:
    from moteur.data.latents import LatentCache, LatentDataset, write_latents
    from moteur.data.lerobot.dataset import LeRobotSet, download_set
    from moteur.data.lerobot.open_files import BoundedCache
    from moteur.data.lerobot.video import available_backends
    from moteur.data.lerobot.writer import LeRobotWriter
    from moteur.data.robot_dataset import RobotDataset
    from moteur.data.set_statistics import compute_statistics

__all__ = [
    "ROBOTS",
    "BoundedCache",
    "Feature",
    "FieldStatistics",
    "LatentCache",
    "LatentDataset",
    "LeRobotSet",
    "LeRobotWriter",
    "Loader",
    "Robot",
    "RobotDataset",
    "RobotStatistics",
    "RobotTransform",
    "Sample",
    "Source",
    "Throughput",
    "Window",
    "as_unit_floats",
    "available_backends",
    "compute_statistics",
    "download_set",
    "find_robot",
    "merge_statistics",
    "read_info",
    "resize_with_pad",
    "stack_samples",
    "write_latents",
]

# Where the names are that need the extra.
_ROOMS = {
    "BoundedCache": "lerobot.open_files",
    "LatentCache": "latents",
    "LatentDataset": "latents",
    "LeRobotSet": "lerobot.dataset",
    "LeRobotWriter": "lerobot.writer",
    "RobotDataset": "robot_dataset",
    "available_backends": "lerobot.video",
    "compute_statistics": "set_statistics",
    "download_set": "lerobot.dataset",
    "write_latents": "latents",
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
