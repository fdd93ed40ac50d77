"""Robots: what their data mean, statistics, and samples for training and acting.

Needs the `data` extra, as `moteur.data.lerobot` does.
"""

from moteur.data.compute_statistics import compute_statistics
from moteur.data.distribution import Distribution, Refinement
from moteur.data.known_robots import ROBOTS, find_robot
from moteur.data.latent_writer import write_latents
from moteur.data.latents import LatentCache, LatentDataset
from moteur.data.loader import Loader, Throughput
from moteur.data.normalize import Normalizer
from moteur.data.robot import Robot, Source, robot_from_modality
from moteur.data.samples import Preparation, RobotDataset
from moteur.data.statistics import FieldStatistics, RobotStatistics, merge_statistics
from moteur.data.window import Window

__all__ = [
    "ROBOTS",
    "Distribution",
    "FieldStatistics",
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
    "compute_statistics",
    "find_robot",
    "merge_statistics",
    "robot_from_modality",
    "write_latents",
]
