"""The layout: named segments in order, and what every rendering needs to know about a range of their positions."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moteur.masks.blocks import block_mask
from moteur.masks.dense import dense_bias, dense_mask
from moteur.masks.picture import picture
from moteur.masks.ranges import checked_range
from moteur.masks.rule import Positions
from moteur.masks.samples import checked_batch
from moteur.masks.segment import Segment, segments_from_block_starts


class Layout:
    r"""Who may see whom in a sequence of named segments.

    A query sees every valid key of its own document whose segment is not later than its own and, in a causal segment,
    that is not later than itself. Padding sees nothing and is seen by nobody. A layout never changes; it holds a few
    integers and the tensors it is given, and every rendering is computed from them when asked for.

    Attributes are read-only: `segments`, `names`, `spans` (the range of positions of each segment), `length`, `valid`,
    `documents` and `batch`.

    Args:
        segments: the segments in order; names must be unique.
        valid: for each ragged segment, True where a sample has a token there. A segment without an entry is valid
            everywhere, and costs no mask.
        documents: for packed batches, the document of each position. Keys of other documents are invisible.
            Batch sizes of `valid` and `documents` must agree; 1 broadcasts.

    Raises:
        ValueError: if there are no segments or two share a name, or if `valid` or `documents` has an unknown name,
            another shape than described, or another dtype.

    Example:
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

    __slots__ = ("_batch", "_documents", "_segments", "_spans", "_valid")

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        valid: Mapping[str, Bool[Tensor, "#batch _"]] | None = None,
        documents: Int[Tensor, "#batch seq"] | None = None,
    ) -> None:
        names = [segment.name for segment in segments]
        if not names:
            raise ValueError("segments must hold at least one segment, got none")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"segments must have unique names, got {', '.join(map(repr, repeated))} more than once")
        ends = list(accumulate(segment.length for segment in segments))
        self._segments = tuple(segments)
        self._spans = tuple(range(end - segment.length, end) for segment, end in zip(self._segments, ends, strict=True))
        self._valid = dict(valid or {})
        self._documents = documents
        self._batch = checked_batch(self._segments, self._valid, documents)

    @classmethod
    def from_block_starts(cls, starts: Sequence[int] | Int[Tensor, " seq"] | Bool[Tensor, " seq"]) -> "Layout":
        r"""Read the "1 starts a new block" convention: a token sees all blocks up to and including its own.

        `[0, 0, 0, 1, 0]` is a prefix of three and a suffix of two; `[1, 1, 1]` is causal; `[0, 0, 1, 1, 1]` is a
        prefix language model. The first token starts a block whether it is marked or not. A run of blocks of one token
        becomes one causal segment, which is the same rule. Segments are named `block0`, `block1` and so on.

        Args:
            starts: 1 (or True) where a block starts, 0 elsewhere.

        Raises:
            ValueError: if `starts` is empty or holds anything but 0 and 1.

        Example:
            >>> print(Layout.from_block_starts([0, 0, 0, 1, 1, 1, 0]))
            3 segments, 7 positions; rows are queries, columns are keys
                       0 1 2
            0 block0 3 # . .
            1 block1 2 # \ .
            2 block2 2 # # #
        """
        return cls(segments_from_block_starts(starts))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in order."""
        return self._segments

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the segments in order."""
        return tuple(segment.name for segment in self._segments)

    @property
    def spans(self) -> tuple[range, ...]:
        """The positions of each segment in order."""
        return self._spans

    @property
    def length(self) -> int:
        """The number of positions."""
        return self._spans[-1].stop

    @property
    def valid(self) -> Mapping[str, Bool[Tensor, "#batch _"]]:
        """A copy of the mapping from ragged segment to its validity."""
        return dict(self._valid)

    @property
    def documents(self) -> Int[Tensor, "#batch seq"] | None:
        """The document of each position, or `None` if there is one only."""
        return self._documents

    @property
    def batch(self) -> int:
        """The number of samples that validity and documents distinguish: 1 if nothing is per sample."""
        return self._batch

    def span(self, first: str, last: str | None = None) -> range:
        """Positions from the start of segment `first` to the end of segment `last` (`first` itself by default).

        Raises:
            ValueError: if a name is unknown or `last` comes before `first`.

        Example:
            >>> layout = Layout([Segment("und", 4), Segment("state", 1), Segment("action", 3)])
            >>> layout.span("state"), layout.span("state", "action")
            (range(4, 5), range(4, 8))
        """
        last = first if last is None else last
        begin, end = self._index("first", first), self._index("last", last)
        if end < begin:
            raise ValueError(f"last must be {first!r} or a later segment, got {last!r}, which comes before it")
        return range(self._spans[begin].start, self._spans[end].stop)

    def with_valid(self, valid: Mapping[str, Bool[Tensor, "#batch _"]] | None) -> "Layout":
        """The same segments and documents with another validity; one layout serves many batches this way.

        Example:
            >>> layout = Layout([Segment("und", 2), Segment("action", 1)])
            >>> layout.with_valid({"und": torch.tensor([[True, False]])}).dense()[0].int()
            tensor([[1, 0, 0],
                    [0, 0, 0],
                    [1, 0, 1]], dtype=torch.int32)
        """
        return Layout(self._segments, valid=valid, documents=self._documents)

    def validity(
        self, span: range | None = None, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "batch seq"] | None:
        """True where a sample has a token, for the positions of `span`; `None` if no segment of it is ragged.

        Raises:
            ValueError: if `span` reaches outside the layout.
        """
        span = checked_range("span", span, self.length)
        parts = self._parts(span)
        if not any(segment.name in self._valid for segment, _, _ in parts):
            return None
        device = self._device(device)
        flags = [
            self._valid[segment.name][:, part.start - own.start : part.stop - own.start].to(device)
            if segment.name in self._valid
            else torch.ones(1, len(part), dtype=torch.bool, device=device)
            for segment, own, part in parts
        ]
        return torch.cat([flag.expand(self._batch, -1) for flag in flags], dim=-1)

    def positions(self, span: range | None = None, *, device: torch.device | str | None = None) -> Positions:
        """What the rule knows about the positions of `span`: rank (1, n), document and validity (batch, n) or `None`.

        Raises:
            ValueError: if `span` reaches outside the layout.
        """
        span = checked_range("span", span, self.length)
        device = self._device(device)
        ranks = [
            torch.arange(part.start, part.stop, dtype=torch.int32, device=device)
            if segment.causal
            else torch.full((len(part),), own.start, dtype=torch.int32, device=device)
            for segment, own, part in self._parts(span)
        ]
        documents = None if self._documents is None else self._documents[:, span.start : span.stop].to(device)
        return Positions(torch.cat(ranks)[None], documents, self.validity(span, device=device))

    def dense(
        self, queries: range | None = None, keys: range | None = None, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "batch query key"]:
        """The mask, True where a query may attend to a key; quadratic in memory.

        Args:
            queries: positions of the rows, all by default.
            keys: positions of the columns, all by default.
            device: where to build it; by default where `valid` or `documents` live, else the default device.

        Raises:
            ValueError: if a range is empty or reaches outside the layout.
        """
        rows, columns = checked_range("queries", queries, self.length), checked_range("keys", keys, self.length)
        mask = dense_mask(self.positions(rows, device=device), self.positions(columns, device=device))
        return mask.expand(self._batch, -1, -1)

    def bias(
        self,
        dtype: torch.dtype,
        queries: range | None = None,
        keys: range | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "batch 1 query key"]:
        """The mask as a term to add to attention scores: 0 where visible, minus infinity elsewhere.

        A row that sees nothing is minus infinity throughout. `scaled_dot_product_attention` turns it into zeros on a
        CPU, in output and gradient; a softmax written by hand turns it into NaN, and other kernels may. The attention
        functions of this package do not depend on that.

        Raises:
            ValueError: if `dtype` is not a floating type, or a range is empty or reaches outside the layout.
        """
        return dense_bias(self.dense(queries, keys, device=device), dtype)

    def block_mask(
        self,
        queries: range | None = None,
        keys: range | None = None,
        *,
        block_size: int = 128,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """The mask for FlexAttention, one for all heads and, if nothing is per sample, for the whole batch.

        Its memory grows with `(length / block_size)²` and with `length`, never with `length²`.

        Raises:
            ValueError: if `block_size` is not positive, or a range is empty or reaches outside the layout.
        """
        rows, columns = checked_range("queries", queries, self.length), checked_range("keys", keys, self.length)
        return block_mask(self.positions(rows, device=device), self.positions(columns, device=device), block_size)

    def __str__(self) -> str:
        header = f"{len(self._segments)} segments, {self.length} positions; rows are queries, columns are keys"
        ragged = [name for name in self.names if name in self._valid]
        notes = [f"padding in {', '.join(ragged)} neither sees nor is seen"] if ragged else []
        notes += ["documents see only themselves"] if self._documents is not None else []
        lines = picture([(segment.name, segment.length) for segment in self._segments], self._edges())
        return "\n".join([header, *lines, *notes])

    def __repr__(self) -> str:
        """Segments, and which tensors are held, without their content."""
        held = f", valid={sorted(self._valid)}" if self._valid else ""
        held += f", documents={tuple(self._documents.shape)}" if self._documents is not None else ""
        return f"Layout({list(self._segments)}{held})"

    def _edges(self) -> tuple[list[int], list[int]]:
        """Least and greatest rank of each segment."""
        low = [span.start for span in self._spans]
        high = [
            span[-1] if segment.causal else span.start
            for segment, span in zip(self._segments, self._spans, strict=True)
        ]
        return low, high

    def _parts(self, span: range) -> list[tuple[Segment, range, range]]:
        """Each segment that `span` touches, with all its positions and with those inside `span`."""
        return [
            (segment, own, range(max(own.start, span.start), min(own.stop, span.stop)))
            for segment, own in zip(self._segments, self._spans, strict=True)
            if own.start < span.stop and span.start < own.stop
        ]

    def _index(self, argument: str, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"{argument} must be one of {', '.join(map(repr, self.names))}, got {name!r}")
        return self.names.index(name)

    def _device(self, device: torch.device | str | None) -> torch.device:
        if device is not None:
            return torch.device(device)
        held = [*self._valid.values(), *([] if self._documents is None else [self._documents])]
        return held[0].device if held else torch.get_default_device()
