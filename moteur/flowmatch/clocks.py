"""The two clocks that flow matching is written in, and which of them a number was read from."""

from typing import Literal, get_args

Clock = Literal["data", "noise"]
"""Where time equals 1: `"data"` is the paper's tau (0 noise, 1 data), `"noise"` its opposite s = 1 - tau."""


def check_clock(clock: str) -> None:
    """Refuse a clock that is neither of the two."""
    if clock not in get_args(Clock):
        raise ValueError(f"clock: expected 'data' (1 is data) or 'noise' (1 is noise), got {clock!r}")
