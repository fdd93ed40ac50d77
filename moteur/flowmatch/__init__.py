"""Flow matching for action chunks: path, training times, solvers, action head and loss."""

from moteur.flowmatch.head import ActionHead
from moteur.flowmatch.loss import flow_loss, mean_count, mean_over
from moteur.flowmatch.path import StraightPath
from moteur.flowmatch.solvers import Method
from moteur.flowmatch.time import BetaTime, LogitNormalTime, discretised

__all__ = [
    "ActionHead",
    "BetaTime",
    "LogitNormalTime",
    "Method",
    "StraightPath",
    "discretised",
    "flow_loss",
    "mean_count",
    "mean_over",
]
