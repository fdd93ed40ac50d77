"""Acting in real time: an inference session on fast kernels."""

from moteur.runtime.kernels import Kernel, optimise
from moteur.runtime.session import InferenceSession

__all__ = ["InferenceSession", "Kernel", "optimise"]
