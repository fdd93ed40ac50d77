"""A generic Mixture-of-Transformers: experts of different widths, one attention, whichever you give it."""

from moteur.mot.cache import KVCache
from moteur.mot.expert import Expert
from moteur.mot.layers import MLP, ConditionedNorm, RMSNorm
from moteur.mot.mot import MoT
from moteur.mot.names import expert_state_dict
from moteur.mot.rotary import Rotary, prepare_rotation, rotary_angles, rotate

__all__ = [
    "MLP",
    "ConditionedNorm",
    "Expert",
    "KVCache",
    "MoT",
    "RMSNorm",
    "Rotary",
    "expert_state_dict",
    "prepare_rotation",
    "rotary_angles",
    "rotate",
]
