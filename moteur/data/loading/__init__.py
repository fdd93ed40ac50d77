"""Feeding a model: batches from worker processes, resumable at the exact sample, with figures of what it costs."""

from moteur.data.loading.figures import Figures
from moteur.data.loading.loader import Loader

__all__ = ["Figures", "Loader"]
