"""Who may see whom: named segments, and every rendering of the one visibility rule."""

from moteur.masks.attention import dense_attention, flex_attention
from moteur.masks.layout import Layout
from moteur.masks.segment import Segment
from moteur.masks.structural import structural_attention

__all__ = ["Layout", "Segment", "dense_attention", "flex_attention", "structural_attention"]
