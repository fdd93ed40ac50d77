"""Understanding backbones: what turns pixels and text into the first stream."""

from moteur.recipes.backbones.qwen3_vl import Qwen3VL
from moteur.recipes.backbones.stream import Stream

__all__ = ["Qwen3VL", "Stream"]
