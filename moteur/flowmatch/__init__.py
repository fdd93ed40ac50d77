"""Flow matching for action chunks: path, training times, solvers, action head and loss."""

from moteur.flowmatch.head import ActionHead
from moteur.flowmatch.loss import Reduction, flow_loss
from moteur.flowmatch.path import PathSample, StraightPath
from moteur.flowmatch.solvers import Method
from moteur.flowmatch.time import BetaTime, time_features

__all__ = [
    "ActionHead",
    "BetaTime",
    "Method",
    "PathSample",
    "Reduction",
    "StraightPath",
    "flow_loss",
    "time_features",
]
