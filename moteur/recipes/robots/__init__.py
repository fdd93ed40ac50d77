"""Robots: what their data mean, statistics, and samples for training and acting.

Needs the `data` extra, as `moteur.recipes.lerobot` does.
"""

from moteur.recipes.robots.batches import observation_of, targets_of
from moteur.recipes.robots.builtin import ROBOTS, find_robot
from moteur.recipes.robots.checkpoint import checkpoint_statistics, preparations_of
from moteur.recipes.robots.collate import Collator, TrainingBatch
from moteur.recipes.robots.collect import compute_statistics
from moteur.recipes.robots.distribution import Distribution, Refinement
from moteur.recipes.robots.normalize import Normalizer
from moteur.recipes.robots.released import column_statistics, released_statistics
from moteur.recipes.robots.samples import Preparation, RobotDataset
from moteur.recipes.robots.schema import Robot, Source, robot_from_modality
from moteur.recipes.robots.statistics import FieldStatistics, RobotStatistics, merge_statistics
from moteur.recipes.robots.windows import Window

__all__ = [
    "ROBOTS",
    "Collator",
    "Distribution",
    "FieldStatistics",
    "Normalizer",
    "Preparation",
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
