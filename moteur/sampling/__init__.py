"""Deterministic, resumable sampling from many datasets over many ranks. Standard library and numpy only."""

from moteur.sampling.epochs import EpochOrder
from moteur.sampling.interleave import Interleave
from moteur.sampling.lpt import assign
from moteur.sampling.mixtures import paper_mixture, spread_weights
from moteur.sampling.sampler import DatasetPool, MapStyle, Sampler
from moteur.sampling.weighted import WeightedOrder

__all__ = [
    "DatasetPool",
    "EpochOrder",
    "Interleave",
    "MapStyle",
    "Sampler",
    "WeightedOrder",
    "assign",
    "paper_mixture",
    "spread_weights",
]
