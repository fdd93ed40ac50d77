"""Conventions: whose code a model's inputs are prepared like."""

from typing import Literal, get_args

Convention = Literal["internvla_a1", "openpi", "lerobot"]
"""The released InternVLA-A1 code, openpi, or LeRobot: they resize and normalise a little differently."""


def check_convention(convention: object) -> None:
    """Refuse what is no convention.

    Raises:
        ValueError: It is none; the known ones are listed.
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention: expected one of {get_args(Convention)}, got {convention!r}")
