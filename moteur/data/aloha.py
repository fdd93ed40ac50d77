"""ALOHA's joints in the units that π's released weights were trained with, and back.

Fourteen dimensions: six joints and a gripper, left, then right. Three of each arm's joints turn the other way. The
gripper of the robot is an opening in [0, 1]; π's is an angle, scaled to about [0, 1]. Source: openpi's `adapt_to_pi`.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

ARM = 7
"""Dimensions of one arm."""

_SIGNS = (1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
_OPENING = (0.01844, 0.05800)  # of the follower's gripper, in metres, closed and open
_CRANK, _ROD = 0.022, 0.036  # of the gripper's linkage, in metres
_PI_ANGLE = (0.5476, 1.6296)  # of π's gripper, in radians, closed and open
_LEADER_ANGLE = (-0.6213, 1.4910)  # of the leader's gripper, which actions are recorded from


def state_to_pi(state: Float64[Tensor, "*lead 14"]) -> Float64[Tensor, "*lead 14"]:
    r"""A state as recorded, in π's units.

    With $v$ the opening in metres and crank and rod of the linkage $r$ and $l$, the angle of a gripper is
    $\arcsin((r^2 + v^2 - l^2) / (2 r v))$.
    """
    opening = _spread(state, _OPENING)
    sine = (_CRANK**2 + opening**2 - _ROD**2) / (2 * _CRANK * opening)
    return _each(state, _scaled(torch.asin(sine.clamp(-1, 1)), _PI_ANGLE))


def actions_to_pi(actions: Float64[Tensor, "*lead 14"]) -> Float64[Tensor, "*lead 14"]:
    """Actions as recorded, in π's units: inverts `actions_from_pi`."""
    return _each(actions, _spread(actions, _LEADER_ANGLE) - _PI_ANGLE[0])


def actions_from_pi(actions: Float64[Tensor, "*lead 14"]) -> Float64[Tensor, "*lead 14"]:
    """Actions in π's units as commands for the robot."""
    return _each(actions, _scaled(actions + _PI_ANGLE[0], _LEADER_ANGLE))


def _each(values: Tensor, grippers: Tensor) -> Tensor:
    """Joints with their signs, grippers as given."""
    signs = torch.tensor((*_SIGNS, 0.0) * 2, dtype=values.dtype, device=values.device)
    return torch.where(signs == 0, grippers, values * signs)


def _spread(values: Tensor, ends: tuple[float, float]) -> Tensor:
    return values * (ends[1] - ends[0]) + ends[0]


def _scaled(values: Tensor, ends: tuple[float, float]) -> Tensor:
    return (values - ends[0]) / (ends[1] - ends[0])
