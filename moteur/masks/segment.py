"""A segment, and how a list of block starts reads as segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of consecutive positions that share one way of looking at each other.

    Attributes:
        name: how the segment is called, unique within a layout.
        length: number of positions, at least 1.
        causal: False if its positions all see each other, True if each sees only itself and those before it.

    Raises:
        ValueError: if `name` is empty or `length` is not a positive integer.

    Example:
        >>> Segment("text", 48, causal=True)
        Segment(name='text', length=48, causal=True)
    """

    name: str
    length: int
    causal: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name of a segment must not be empty, got ''")
        if not isinstance(self.length, int) or isinstance(self.length, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"length of segment {self.name!r} must be an integer, got {self.length!r}")
        if self.length < 1:
            raise ValueError(f"length of segment {self.name!r} must be at least 1, got {self.length}")


def segments_from_block_starts(
    starts: Sequence[int] | Int[Tensor, " seq"] | Bool[Tensor, " seq"],
) -> tuple[Segment, ...]:
    """Segments `block0`, `block1` and so on, of which runs of blocks of one position are one causal segment.

    Raises:
        ValueError: if `starts` is empty or holds anything but 0 and 1.

    Example:
        >>> [(segment.length, segment.causal) for segment in segments_from_block_starts([0, 0, 0, 1, 1, 1, 0])]
        [(3, False), (2, True), (2, False)]
    """
    starts = starts.tolist() if isinstance(starts, Tensor) else list(starts)
    wrong = sorted({start for start in starts if start not in {0, 1}})
    if wrong or not starts:
        raise ValueError(f"starts must be a non-empty sequence of 0 and 1, got {wrong or 'nothing'}")
    edges = [0, *(position for position, start in enumerate(starts) if start and position), len(starts)]
    runs: list[tuple[int, bool]] = []
    for first, last in pairwise(edges):
        if runs and last - first == 1 and (runs[-1][1] or runs[-1][0] == 1):
            runs[-1] = (runs[-1][0] + 1, True)
        else:
            runs.append((last - first, False))
    return tuple(Segment(f"block{index}", length, causal) for index, (length, causal) in enumerate(runs))
