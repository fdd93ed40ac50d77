"""Acting in real time: a policy for robots, and the inference session on fast kernels beneath it."""

from moteur.runtime.kernels import Kernel, optimise
from moteur.runtime.policy import Chunk, Policy
from moteur.runtime.session import InferenceSession

__all__ = ["Chunk", "InferenceSession", "Kernel", "Policy", "optimise"]
