"""Understanding backbones: pictures and an instruction to the first stream."""

from moteur.recipes.backbones.internvl3 import InternVL3
from moteur.recipes.backbones.qwen3_vl import Qwen3VL, VisionMLP
from moteur.recipes.backbones.stream import Stream, continued

__all__ = ["InternVL3", "Qwen3VL", "Stream", "VisionMLP", "continued"]
