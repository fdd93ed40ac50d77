"""Robots: what their data mean, statistics, and samples for training and acting.

Needs the `data` extra, as `moteur.data.lerobot` does.
"""

from moteur.data.compute_statistics import compute_statistics
from moteur.data.distribution import Distribution, Refinement
from moteur.data.images import as_unit_range, resize_with_pad
from moteur.data.known_robots import ROBOTS, find_robot
from moteur.data.lerobot.dataset import LeRobotSet, download_set
from moteur.data.lerobot.info import Feature, read_info
from moteur.data.lerobot.open_files import BoundedCache
from moteur.data.lerobot.video import available_backends
from moteur.data.lerobot.writer import LeRobotWriter
from moteur.data.latents import LatentCache, LatentDataset
from moteur.data.loader import Loader, Throughput
from moteur.data.normalize import Normalizer
from moteur.data.robot import Robot, Source, robot_from_modality
from moteur.data.samples import Preparation, RobotDataset
from moteur.data.statistics import FieldStatistics, RobotStatistics, merge_statistics
from moteur.data.window import Window
from moteur.data.write_latents import write_latents

__all__ = [
    "ROBOTS",
    "BoundedCache",
    "Distribution",
    "Feature",
    "FieldStatistics",
    "LeRobotSet",
    "LeRobotWriter",
    "LatentCache",
    "LatentDataset",
    "Loader",
    "Normalizer",
    "Preparation",
    "Refinement",
    "Robot",
    "RobotDataset",
    "RobotStatistics",
    "Source",
    "Throughput",
    "Window",
    "available_backends",
    "compute_statistics",
    "download_set",
    "find_robot",
    "merge_statistics",
    "read_info",
    "robot_from_modality",
    "write_latents",
]
