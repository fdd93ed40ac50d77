"""Segments of a sequence, and how much each sees of each."""

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from itertools import pairwise
from typing import SupportsIndex, TypeAlias

Relation: TypeAlias = tuple[tuple[int, ...], ...]
"""How much each segment (row) sees of each (column): `NOTHING`, `ITSELF` or `ALL`."""

NOTHING, ITSELF, ALL = 0, 1, 2  # ITSELF: of a causal segment, each token sees itself and those before it
_MARKS = ".\\#"  # of each of these


@dataclass(frozen=True, repr=False)
class Segment:
    """Consecutive positions with one name and one attention pattern.

    A segment sees itself and, unless it says otherwise, every earlier segment that is not private.

    Attributes:
        name: Name, unique within a layout.
        length: Number of positions; may be 0, as that of an instruction that is absent.
        causal: If False, all positions of the segment see each other. If True, each sees itself and those before it.
        private: Other segments do not see it, unless their `sees` names it.
        sees: Names of the other segments it sees, earlier or later ones, instead of all earlier ones that are not
            private.
        block: Name of a block. Segments of one block see each other whole, whatever stands between them, in addition
            to what they see otherwise. For bidirectional segments.
        window: Of its own segment, a position sees itself and the `window - 1` positions before it; other segments it
            sees whole. For causal segments.

    Raises:
        ValueError: If `length` or `window` is not an integer or too small, a bidirectional segment has a window or a
            causal one a block, or `sees` is a string.

    Examples:
        >>> Segment("text", 48, causal=True)
        Segment(name='text', length=48, causal=True)
        >>> Segment("action", 50, sees=["first frame"])
        Segment(name='action', length=50, causal=False, sees=('first frame',))
    """

    name: str
    length: int
    causal: bool = False
    _: KW_ONLY
    private: bool = False
    sees: Collection[str] | None = None
    block: str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 0:
            object.__setattr__(self, "length", _integer("length", self.length, 0, self.name))
        if self.window is not None:
            object.__setattr__(self, "window", _integer("window", self.window, 1, self.name))
            if not self.causal:
                raise ValueError(f"window: expected None for bidirectional segment {self.name!r}, got {self.window}")
        if self.block is not None and self.causal:
            raise ValueError(f"block: expected None for causal segment {self.name!r}, got {self.block!r}")
        if isinstance(self.sees, str):
            raise ValueError(f"sees: expected a collection of names for segment {self.name!r}, got {self.sees!r}")
        if self.sees is not None:
            object.__setattr__(self, "sees", tuple(sorted(set(self.sees))))

    def __repr__(self) -> str:
        """Name, length, whether it is causal, and the options that are set."""
        values = [(field, getattr(self, field.name)) for field in fields(self)]
        shown = [f"{field.name}={value!r}" for field, value in values if not field.kw_only or value != field.default]
        return f"Segment({', '.join(shown)})"

    @property
    def plain(self) -> bool:
        """Whether its place in the order, and whether it is causal, say all about it."""
        return not self.private and self.sees is None and self.block is None and self.window is None


def _integer(argument: str, number: SupportsIndex, least: int, name: str) -> int:
    """A number as a plain `int`; those of NumPy and PyTorch are welcome."""
    try:
        whole = operator.index(number)
    except TypeError:
        raise ValueError(f"{argument}: expected an integer for segment {name!r}, got {number!r}") from None
    if whole < least:
        raise ValueError(f"{argument}: expected at least {least} for segment {name!r}, got {whole}")
    return whole


def relation(segments: Sequence[Segment]) -> Relation:
    """How much each segment sees of each.

    Raises:
        ValueError: If a segment is to see one that is not there.

    Examples:
        >>> relation([Segment("text", 3, causal=True), Segment("noise", 2, private=True), Segment("action", 1)])
        ((1, 0, 0), (2, 2, 0), (2, 0, 2))
    """
    names = [segment.name for segment in segments]
    for segment in segments:
        if unknown := set(segment.sees or ()) - set(names):
            raise ValueError(f"sees: expected names among {names} for segment {segment.name!r}, got {sorted(unknown)}")
    places = range(len(segments))
    return tuple(
        tuple(_seen(segments[query], segments[key], earlier=key < query) for key in places) for query in places
    )


def _seen(query: Segment, key: Segment, *, earlier: bool) -> int:
    """How much one segment sees of another, or of itself."""
    if query is key:
        return ITSELF if query.causal else ALL
    together = query.block is not None and query.block == key.block
    chosen = key.name in query.sees if query.sees is not None else earlier and not key.private
    return ALL if together or chosen else NOTHING


def checked_range(name: str, positions: range | None, length: int) -> range:
    """`positions`, or all of them for `None`, if they lie in `[0, length)`; slices would cut off the rest silently."""
    if positions is None:
        return range(length)
    if positions.step != 1 or not 0 <= positions.start < positions.stop <= length:
        raise ValueError(f"{name}: expected a non-empty range of step 1 within range(0, {length}), got {positions}")
    return positions


def merged(spans: Iterable[range]) -> tuple[range, ...]:
    """Spans in order as runs: empty ones left out, those that touch joined."""
    runs: list[range] = []
    for span in spans:
        if span:
            touches = bool(runs) and runs[-1].stop == span.start
            runs.append(range(runs.pop().start if touches else span.start, span.stop))
    return tuple(runs)


def picture(segments: Sequence[Segment], relation: Relation) -> list[str]:
    """The relation as a table, one line for each segment."""
    count, length = len(segments), sum(segment.length for segment in segments)
    wide = len(str(count - 1))
    names = max(len(segment.name) for segment in segments)
    lengths = max(len(str(segment.length)) for segment in segments)
    numbers = "".join(f" {index:>{wide}}" for index in range(count))
    lines = [
        f"{count} segments, {length} positions; rows are queries, columns are keys",
        " " * (wide + names + lengths + 2) + numbers,
    ]
    for index, (segment, row) in enumerate(zip(segments, relation, strict=True)):
        label = f"{index:>{wide}} {segment.name:<{names}} {segment.length:>{lengths}}"
        marks = [ALL if segment.causal and segment.length == 1 and much else much for much in row]  # itself is all
        lines.append(label + "".join(f" {_MARKS[much]:>{wide}}" for much in marks))
    return lines


def block_segments(starts: Sequence[int]) -> list[Segment]:
    """Segments of the blocks that start where there is a 1; a run of blocks of one token is one causal segment."""
    edges = [0, *(position for position, start in enumerate(starts) if start and position), len(starts)]
    runs: list[tuple[int, bool]] = []
    for first, last in pairwise(edges):
        if runs and last - first == 1 and (runs[-1][1] or runs[-1][0] == 1):
            runs[-1] = (runs[-1][0] + 1, True)
        else:
            runs.append((last - first, False))
    return [Segment(f"block{index}", length, causal) for index, (length, causal) in enumerate(runs)]
