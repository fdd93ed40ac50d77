"""Attention masks from named segments: dense, bias, FlexAttention block mask, or attention without a mask."""

from moteur.masks.attention import dense_attention, flex_attention, joined_attention, structural_attention
from moteur.masks.layout import Layout
from moteur.masks.segments import Segment

__all__ = ["Layout", "Segment", "dense_attention", "flex_attention", "joined_attention", "structural_attention"]
