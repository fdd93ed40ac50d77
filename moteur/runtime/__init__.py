"""Real time: InternVLA-A1 with everything removed from a call that does not change its answer."""

from moteur.runtime.choice import Kernel
from moteur.runtime.parts import Parts, fuse_for_inference
from moteur.runtime.session import InferenceSession
from moteur.runtime.stream import Times

__all__ = ["InferenceSession", "Kernel", "Parts", "Times", "fuse_for_inference"]
