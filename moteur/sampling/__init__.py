"""Sampling arithmetic: who holds which dataset, and who draws what when. Standard library and numpy only."""

from moteur.sampling.assignment import Assignment, Share
from moteur.sampling.lpt import assign

__all__ = ["Assignment", "Share", "assign"]
