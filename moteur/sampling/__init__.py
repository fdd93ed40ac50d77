"""Sampling arithmetic: who holds which dataset, and who draws what when. Standard library and numpy only."""

from moteur.sampling.assignment import Assignment, Share
from moteur.sampling.corpora import Corpus, paper_mixture, spread_weights
from moteur.sampling.epochs import EpochOrder, Uneven
from moteur.sampling.frames import FrameIndex
from moteur.sampling.lpt import assign
from moteur.sampling.pool import MapStyle, Pool
from moteur.sampling.sampler import Order, Sampler, SamplerState
from moteur.sampling.weighted import WeightedOrder

__all__ = [
    "Assignment",
    "Corpus",
    "EpochOrder",
    "FrameIndex",
    "MapStyle",
    "Order",
    "Pool",
    "Sampler",
    "SamplerState",
    "Share",
    "Uneven",
    "WeightedOrder",
    "assign",
    "paper_mixture",
    "spread_weights",
]
