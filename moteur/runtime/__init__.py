"""Acting in real time: a policy for robots, on an inference session with fast kernels."""

from moteur.runtime.kernels import Kernel, optimise
from moteur.runtime.policy import Chunk, Policy
from moteur.runtime.session import InferenceSession

__all__ = ["Chunk", "InferenceSession", "Kernel", "Policy", "optimise"]
