"""Real time: InternVLA-A1 with everything removed from a call that does not change its answer."""

from moteur.recipes.inference.choice import Kernel
from moteur.recipes.inference.parts import Parts, fuse_for_inference
from moteur.recipes.inference.session import InferenceSession
from moteur.recipes.inference.stream import Times

__all__ = ["InferenceSession", "Kernel", "Parts", "Times", "fuse_for_inference"]
