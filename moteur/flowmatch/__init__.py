"""Flow matching for action chunks: the path, its times, its solvers, and the head that speaks a robot's units."""

from moteur.flowmatch.beta import BetaTime
from moteur.flowmatch.clocks import Clock
from moteur.flowmatch.features import time_features
from moteur.flowmatch.head import ActionHead
from moteur.flowmatch.loss import Reduction, flow_loss
from moteur.flowmatch.path import data_from_velocity, interpolate, noise_from_velocity, velocity_target
from moteur.flowmatch.solvers import Velocity, solve
from moteur.flowmatch.steps import Increment, Method, integrate

__all__ = [
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
