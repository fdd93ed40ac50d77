"""Layout of a sequence: named segments in order, with the attention masks computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moteur.masks.rule import Blocks, Positions, block_mask, each, visible, visible_blocks

_MARKS = ".\\#"  # nothing, up to itself, all
_HIDDEN = 0.7  # of the lowest number: a score of float16 below -16 would overflow the lowest number itself


@dataclass(frozen=True)
class Segment:
    """Consecutive positions with one name and one attention pattern.

    Attributes:
        name: Name, unique within a layout.
        length: Number of positions, at least 1.
        causal: If False, all positions of the segment see each other. If True, each sees itself and those before it.

    Raises:
        ValueError: If `length` is below 1.

    Examples:
        >>> Segment("text", 48, causal=True)
        Segment(name='text', length=48, causal=True)
    """

    name: str
    length: int
    causal: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length: expected at least 1 for segment {self.name!r}, got {self.length}")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Layout:
    r"""Attention pattern of a sequence of named segments.

    A query attends to every valid key of its own document whose segment is not later than its own and, in a causal
    segment, that is not later than itself. Padding attends to nothing and nothing attends to it. A layout is immutable
    and holds no mask: masks are computed on request.

    Positions are all that a layout shares with tokens. Attention gets tensors without names, so whoever joins the
    tokens must join them in the order of the segments; for a `MoT` that is the order of its experts.

    Args:
        segments: Segments in order, with unique names.
        valid: For each segment with padding, True where a sample has a token. A segment without an entry has no padding
            and needs no mask.
        documents: For packed batches, the document of each position. Keys of other documents are invisible.
            `valid` and `documents` have one batch size; a batch size of 1 is broadcast.

    Attributes:
        segments: Segments in order.
        spans: Range of positions of each segment.
        documents: Document of each position, or `None`.
        batch: Batch size of `valid` and `documents`; 1 if neither is given.

    Raises:
        ValueError: If there is no segment or a repeated name, or if an entry of `valid` or `documents` has an unknown
            name, another shape or dtype, or another batch size.

    Examples:
        >>> layout = Layout([Segment("image", 2), Segment("text", 3, causal=True)])
        >>> print(layout)
        2 segments, 5 positions; rows are queries, columns are keys
                  0 1
        0 image 2 # .
        1 text  3 # \
        >>> layout.dense()[0].int()
        tensor([[1, 1, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 0],
                [1, 1, 1, 1, 1]], dtype=torch.int32)
    """

    segments: tuple[Segment, ...]
    spans: tuple[range, ...]
    documents: Int[Tensor, "#batch seq"] | None
    batch: int
    _valid: Mapping[str, Bool[Tensor, "#batch _"]]

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        valid: Mapping[str, Bool[Tensor, "#batch _"]] | None = None,
        documents: Int[Tensor, "#batch seq"] | None = None,
    ) -> None:
        names = [segment.name for segment in segments]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"segments: expected at least one, with unique names, got {names}")
        ends = accumulate(segment.length for segment in segments)
        spans = tuple(range(end - segment.length, end) for segment, end in zip(segments, ends, strict=True))
        batch = _batch_size(dict(zip(names, spans, strict=True)), valid or {}, documents)
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "_valid", dict(valid or {}))

    @classmethod
    def from_block_starts(cls, starts: Sequence[int] | Int[Tensor, " seq"] | Bool[Tensor, " seq"]) -> "Layout":
        r"""Build a layout from the "1 starts a new block" convention of π0.

        A token attends to its own block and to all blocks before it. `[0, 0, 0, 1, 0]` is a prefix of three and a
        suffix of two; `[1, 1, 1]` is causal; `[0, 0, 1, 1, 1]` is a prefix language model. The first token always
        starts a block. A run of blocks of one token becomes one causal segment, which is the same rule. Segments are
        named `block0`, `block1` and so on.

        Args:
            starts: 1 (or True) where a block starts, 0 elsewhere.

        Raises:
            ValueError: If `starts` is empty or holds anything but 0 and 1.

        Examples:
            >>> print(Layout.from_block_starts([0, 0, 0, 1, 1, 1, 0]))
            3 segments, 7 positions; rows are queries, columns are keys
                       0 1 2
            0 block0 3 # . .
            1 block1 2 # \ .
            2 block2 2 # # #
        """
        starts = starts.tolist() if isinstance(starts, Tensor) else list(starts)
        if not starts or set(starts) - {0, 1}:
            raise ValueError(f"starts: expected 0 and 1, at least one of them, got {sorted(set(starts))}")
        edges = [0, *(position for position, start in enumerate(starts) if start and position), len(starts)]
        runs: list[tuple[int, bool]] = []
        for first, last in pairwise(edges):
            if runs and last - first == 1 and (runs[-1][1] or runs[-1][0] == 1):
                runs[-1] = (runs[-1][0] + 1, True)
            else:
                runs.append((last - first, False))
        return cls([Segment(f"block{index}", length, causal) for index, (length, causal) in enumerate(runs)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments in order."""
        return tuple(segment.name for segment in self.segments)

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.spans[-1].stop

    @property
    def valid(self) -> Mapping[str, Bool[Tensor, "#batch _"]]:
        """Validity of each segment with padding, in a new mapping."""
        return dict(self._valid)

    def span(self, first: str, last: str | None = None) -> range:
        """Positions from the start of segment `first` to the end of segment `last` (default: `first` itself).

        Raises:
            ValueError: If a name is unknown or `last` comes before `first`.

        Examples:
            >>> layout = Layout([Segment("und", 4), Segment("state", 1), Segment("action", 3)])
            >>> layout.span("state"), layout.span("state", "action")
            (range(4, 5), range(4, 8))
        """
        names, begin = self.names, 0
        for argument, name in (("first", first), ("last", first if last is None else last)):
            if name not in names[begin:]:
                raise ValueError(f"{argument}: expected one of {', '.join(map(repr, names[begin:]))}, got {name!r}")
            begin = names.index(name)
        return range(self.spans[names.index(first)].start, self.spans[begin].stop)

    def with_valid(self, valid: Mapping[str, Bool[Tensor, "#batch _"]] | None) -> "Layout":
        """Same segments and documents with another validity, for example that of the next batch.

        Examples:
            >>> layout = Layout([Segment("und", 2), Segment("action", 1)])
            >>> layout.with_valid({"und": torch.tensor([[True, False]])}).dense()[0].int()
            tensor([[1, 0, 0],
                    [0, 0, 0],
                    [1, 0, 1]], dtype=torch.int32)
        """
        return Layout(self.segments, valid=valid, documents=self.documents)

    def validity(
        self, span: range | None = None, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "batch seq"] | None:
        """True where a sample has a token, for the positions of `span` (default: all).

        Returns:
            `None` if no segment in `span` has an entry in `valid`; the values of the entries are never looked at.

        Raises:
            ValueError: If `span` is empty or reaches outside the layout.
        """
        parts = self._parts(checked_range("span", span, self.length))
        if not any(segment.name in self._valid for segment, _, _ in parts):
            return None
        device = self._device(device)
        flags = [
            self._valid[segment.name][:, part.start - own.start : part.stop - own.start].to(device)
            if segment.name in self._valid
            else torch.ones(1, len(part), dtype=torch.bool, device=device)
            for segment, own, part in parts
        ]
        return torch.cat([flag.expand(self.batch, -1) for flag in flags], dim=-1)

    def dense(
        self, queries: range | None = None, keys: range | None = None, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "batch query key"]:
        """Boolean mask, True where a query may attend to a key. Memory is quadratic in the length.

        Args:
            queries: Positions of the rows, by default all.
            keys: Positions of the columns, by default all.
            device: Where to build the mask; by default the device of `valid` or `documents`, else the default device.

        Raises:
            ValueError: If a range is empty or reaches outside the layout.
        """
        rows, columns = self._rows_and_columns(queries, keys, device)
        # Only integers and booleans are compared, so the mask is exact at any length.
        mask = visible(each(lambda held: held[..., :, None], rows), each(lambda held: held[..., None, :], columns))
        return mask.expand(self.batch, -1, -1)

    def bias(
        self,
        dtype: torch.dtype,
        queries: range | None = None,
        keys: range | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "batch 1 query key"]:
        """Mask to add to attention scores: 0 where visible, 0.7 times the lowest number of `dtype` elsewhere.

        Arguments and errors are those of `dense`, and `dtype` is a floating type.

        In float32 that is -2.3819763e38, the number in openpi and Gemma. A softmax gives it a weight of exactly zero.
        It is finite, and stays finite when a negative score is added, because a row of padding is masked throughout:
        minus infinity would make that row NaN, and with it the gradients of keys and values. The row's weights mean
        nothing; the attention functions of this package give zeros there.
        """
        mask = self.dense(queries, keys, device=device)
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, _HIDDEN * torch.finfo(dtype).min)[:, None]

    def block_mask(
        self,
        queries: range | None = None,
        keys: range | None = None,
        *,
        block_size: int = 128,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """FlexAttention block mask, one for all heads and, without `valid` and `documents`, for the whole batch.

        Memory grows with `(length / block_size)²` and with `length`, never with `length²`. Other arguments and errors
        as in `dense`.
        """
        return block_mask(*self._rows_and_columns(queries, keys, device), block_size)

    def __str__(self) -> str:
        r"""Table of segments: `#` sees all of a segment, `\` sees it up to itself, `.` sees nothing of it."""
        spans = self.spans
        low = [span.start for span in spans]
        high = [span[-1] if segment.causal else span.start for segment, span in zip(self.segments, spans, strict=True)]
        exists = torch.ones(len(spans), dtype=torch.bool)
        blocks = Blocks(torch.tensor([low, high]), None, exists, exists)
        full, partial = visible_blocks(blocks, blocks)
        marks = (2 * full.int() + partial.int()).tolist()

        wide = len(str(len(spans) - 1))
        names, lengths = max(map(len, self.names)), max(len(str(len(span))) for span in spans)
        numbers = "".join(f" {index:>{wide}}" for index in range(len(spans)))
        lines = [
            f"{len(spans)} segments, {self.length} positions; rows are queries, columns are keys",
            " " * (wide + names + lengths + 2) + numbers,
        ]
        for index, (segment, row) in enumerate(zip(self.segments, marks, strict=True)):
            label = f"{index:>{wide}} {segment.name:<{names}} {segment.length:>{lengths}}"
            lines.append(label + "".join(f" {_MARKS[mark]:>{wide}}" for mark in row))
        padded = [name for name in self.names if name in self._valid]
        lines += [f"padding in {', '.join(padded)} neither sees nor is seen"] if padded else []
        lines += ["documents see only themselves"] if self.documents is not None else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Segments and the names of held tensors, without their content."""
        held = f", valid={sorted(self._valid)}" if self._valid else ""
        held += f", documents={tuple(self.documents.shape)}" if self.documents is not None else ""
        return f"Layout({list(self.segments)}{held})"

    def _rows_and_columns(
        self, queries: range | None, keys: range | None, device: torch.device | str | None
    ) -> tuple[Positions, Positions]:
        rows, columns = checked_range("queries", queries, self.length), checked_range("keys", keys, self.length)
        return self._positions(rows, device), self._positions(columns, device)

    def _positions(self, span: range, device: torch.device | str | None) -> Positions:
        """Rank (1, seq), document (batch, seq) and validity (batch, seq) of the positions of `span`."""
        device = self._device(device)
        ranks = [
            torch.arange(part.start, part.stop, dtype=torch.int32, device=device)
            if segment.causal
            else torch.full((len(part),), own.start, dtype=torch.int32, device=device)
            for segment, own, part in self._parts(span)
        ]
        documents = None if self.documents is None else self.documents[:, span.start : span.stop].to(device)
        return Positions(torch.cat(ranks)[None], documents, self.validity(span, device=device))

    def _parts(self, span: range) -> list[tuple[Segment, range, range]]:
        """Each segment that `span` touches, with all its positions and with those inside `span`."""
        return [
            (segment, own, range(max(own.start, span.start), min(own.stop, span.stop)))
            for segment, own in zip(self.segments, self.spans, strict=True)
            if own.start < span.stop and span.start < own.stop
        ]

    def _device(self, device: torch.device | str | None) -> torch.device:
        if device is not None:
            return torch.device(device)
        held = [*self._valid.values(), *([] if self.documents is None else [self.documents])]
        return held[0].device if held else torch.get_default_device()


def checked_range(name: str, positions: range | None, length: int) -> range:
    """`positions`, or all of them for `None`, if they lie in `[0, length)`; slices would cut off the rest silently."""
    if positions is None:
        return range(length)
    if positions.step != 1 or not 0 <= positions.start < positions.stop <= length:
        raise ValueError(f"{name}: expected a non-empty range of step 1 within range(0, {length}), got {positions}")
    return positions


def _batch_size(
    spans: Mapping[str, range],
    valid: Mapping[str, Bool[Tensor, "#batch _"]],
    documents: Int[Tensor, "#batch seq"] | None,
) -> int:
    """Common batch size of validity and documents, 1 if neither is given.

    The run-time shape checker is off for most users, and an unknown name or an integer mask would give a wrong mask.
    """
    if unknown := set(valid) - set(spans):
        raise ValueError(f"valid: expected names among {', '.join(map(repr, spans))}, got {sorted(unknown)}")
    sizes: set[int] = set()
    for name, flags in valid.items():
        if flags.dtype != torch.bool or flags.shape[1:] != (len(spans[name]),):
            raise ValueError(
                f"valid[{name!r}]: expected a boolean tensor of shape (batch, {len(spans[name])}), "
                f"got {flags.dtype} of shape {tuple(flags.shape)}"
            )
        sizes.add(len(flags))
    if documents is not None:
        length = max(span.stop for span in spans.values())
        if documents.shape[1:] != (length,):
            raise ValueError(f"documents: expected shape (batch, {length}), got {tuple(documents.shape)}")
        sizes.add(len(documents))
    if len(sizes - {1}) > 1:
        raise ValueError(f"valid, documents: expected one batch size or 1, got {sorted(sizes)}")
    return max(sizes, default=1)
