"""Times of a sample: which frames and which actions around the present belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from moteur.data.files import parse

_TIMES = 3
_TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True)
class Window:
    """Offsets of the history, present and future frame, and the length of the action chunk.

    Attributes:
        offsets: Frame offsets of history (negative), present (0) and future (positive); `(0,)` for the present alone.
        seconds: The same in seconds, instead of `offsets`: one horizon for robots of different rates.
        steps: Length of the action chunk; step 0 is the action of the present frame.

    Raises:
        ValueError: The chunk is empty, or the offsets are others than these.

    Examples:
        >>> Window(seconds=(-0.5, 0.0, 0.5)).frame_offsets(fps=30)
        (-15, 0, 15)
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    offsets: tuple[int, ...] = (-15, 0, 15)
    seconds: tuple[float, ...] | None = None
    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        name, times = ("offsets", self.offsets) if self.seconds is None else ("seconds", self.seconds)
        if times != (0,) and not (len(times) == _TIMES and times[0] < times[1] == 0 < times[2]):
            raise ValueError(f"{name}: expected a time before 0, 0 and a time after it, or (0,) alone, got {times}")

    @property
    def num_times(self) -> int:
        """Number of frames: 3, or 1 for the present alone."""
        return len(self.offsets if self.seconds is None else self.seconds)

    def frame_offsets(self, fps: int) -> tuple[int, ...]:
        """Offsets in frames for a set of this rate.

        Raises:
            ValueError: The window is in seconds, and one is not a multiple of the frame time to within 0.1 ms.
        """
        if self.seconds is None:
            return self.offsets
        offsets = tuple(round(value * fps) for value in self.seconds)
        for value, offset in zip(self.seconds, offsets, strict=True):
            if abs(value - offset / fps) > _TOLERANCE_SECONDS:
                raise ValueError(f"seconds: expected multiples of the frame time 1/{fps} s, got {value}")
        return offsets

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        plain: dict[str, Any] = {"offsets": list(self.offsets), "steps": self.steps}
        return plain if self.seconds is None else plain | {"seconds": list(self.seconds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Window":
        """Build a window from plain values; what is left out is the default.

        Raises:
            ValueError: The values do not make a window; the field is named.
        """
        return parse(_SCHEMA, values, "window")


_SCHEMA = TypeAdapter(Window)
