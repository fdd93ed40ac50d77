"""Acting in real time: policies, and inference sessions on fast kernels."""

from moteur.runtime.kernels import optimise
from moteur.runtime.policy import Chunk, Policy
from moteur.runtime.session import InferenceSession

__all__ = ["Chunk", "InferenceSession", "Policy", "optimise"]
