"""Layout of a sequence: named segments in order, with the attention masks computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moteur.masks.rule import Positions, block_mask, each, filled, visible
from moteur.masks.segments import ITSELF, Relation, Segment, block_segments, checked_range, merged, picture, relation

_HIDDEN = 0.7  # of the lowest number: a score of float16 below -16 would overflow the lowest number itself


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Layout:
    r"""Attention pattern of a sequence of named segments.

    A query attends to every valid key of its own document whose segment is not later than its own and, in a causal
    segment, that is not later than itself. Options of a `Segment` change what it sees and who sees it. Padding attends
    to nothing and nothing attends to it. A layout is immutable and holds no mask: masks are computed on request.

    Positions are all that a layout shares with tokens. Attention gets tensors without names, so whoever joins the
    tokens must join them in the order of the segments; for a `MoT` that is the order of its experts, and
    `joined_attention` holds the two against each other.

    Two layouts are equal if their segments and the values of their tensors are; comparing reads them.

    Args:
        segments: Segments in order, with unique names; at least one position in all.
        valid: For each segment with padding, True where a sample has a token. A segment without an entry has no padding
            and needs no mask.
        documents: For packed batches, the document of each position. Keys of other documents are invisible.
        ranks: For boundaries that differ between samples, the rank of each position, in place of the order of segments:
            a query sees the keys whose rank is not above its own. Segments then only name positions, and have no
            options. `valid`, `documents` and `ranks` have one batch size; a batch size of 1 is broadcast.

    Attributes:
        segments: Segments in order.
        spans: Range of positions of each segment.
        documents: Document of each position, or `None`.
        ranks: Rank of each position, or `None`.
        batch: Batch size of `valid`, `documents` and `ranks`; 1 if none is given.

    Raises:
        ValueError: If there is no position or a repeated name, a segment is to see one that is not there, an entry of
            `valid`, or `documents` or `ranks`, has an unknown name, another shape or dtype, or another batch size, or
            there are ranks and a segment has options.

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
    ranks: Int[Tensor, "#batch seq"] | None
    batch: int
    _valid: Mapping[str, Bool[Tensor, "#batch _"]]
    _relation: Relation | None  # None: the order of segments says it all

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        valid: Mapping[str, Bool[Tensor, "#batch _"]] | None = None,
        documents: Int[Tensor, "#batch seq"] | None = None,
        ranks: Int[Tensor, "#batch seq"] | None = None,
    ) -> None:
        names = [segment.name for segment in segments]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"segments: expected at least one, with unique names, got {names}")
        ends = list(accumulate(segment.length for segment in segments))
        if not ends[-1]:
            raise ValueError(f"segments: expected at least one position, got none in {names}")
        spans = tuple(range(end - segment.length, end) for segment, end in zip(segments, ends, strict=True))
        batch = _batch_size(dict(zip(names, spans, strict=True)), valid, {"documents": documents, "ranks": ranks})
        if ranks is not None and (ranks.is_floating_point() or ranks.dtype == torch.bool):
            raise ValueError(f"ranks: expected integers, got {ranks.dtype}")
        if ranks is not None and (ordered := [part for part in segments if part.causal or not part.plain]):
            raise ValueError(f"ranks: expected segments that are not causal and have no options, got {ordered}")
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "spans", spans)
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "_valid", dict(valid or {}))
        object.__setattr__(self, "_relation", None if all(part.plain for part in segments) else relation(segments))

    @classmethod
    def from_block_starts(
        cls,
        starts: Sequence[int] | Sequence[Sequence[int]] | Int[Tensor, "*batch seq"] | Bool[Tensor, "*batch seq"],
    ) -> "Layout":
        r"""Build a layout from the "1 starts a new block" convention of π0.

        A token attends to its own block and to all blocks before it. `[0, 0, 0, 1, 0]` is a prefix of three and a
        suffix of two; `[1, 1, 1]` is causal; `[0, 0, 1, 1, 1]` is a prefix language model. The first token always
        starts a block. A run of blocks of one token becomes one causal segment, which is the same rule. Segments are
        named `block0`, `block1` and so on.

        Starts of each sample, (batch, seq), become the ranks of one segment named `tokens`.

        Args:
            starts: 1 (or True) where a block starts, 0 elsewhere. Values are read, except those of a boolean
                (batch, seq) tensor.

        Raises:
            ValueError: If `starts` is empty, has more than two axes, or holds anything but 0 and 1.

        Examples:
            >>> print(Layout.from_block_starts([0, 0, 0, 1, 1, 1, 0]))
            3 segments, 7 positions; rows are queries, columns are keys
                       0 1 2
            0 block0 3 # . .
            1 block1 2 # \ .
            2 block2 2 # # #
            >>> Layout.from_block_starts([[0, 0, 1], [0, 1, 1]]).dense()[1].int()
            tensor([[1, 0, 0],
                    [1, 1, 0],
                    [1, 1, 1]], dtype=torch.int32)
        """
        starts = torch.as_tensor(starts)
        if starts.ndim not in (1, 2):
            raise ValueError(f"starts: expected shape (seq,) or (batch, seq), got {tuple(starts.shape)}")
        found = {0, 1} if starts.dtype == torch.bool else set(starts.flatten().tolist())
        if not starts.numel() or found - {0, 1}:
            raise ValueError(f"starts: expected 0 and 1, at least one of them, got {sorted(found)}")
        if starts.ndim == 2:  # noqa: PLR2004  # batch and seq
            return cls([Segment("tokens", starts.shape[1])], ranks=starts.cumsum(dim=1))
        return cls(block_segments(starts.tolist()))

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
        """Same segments, documents and ranks with another validity, for example that of the next batch.

        Examples:
            >>> layout = Layout([Segment("und", 2), Segment("action", 1)])
            >>> layout.with_valid({"und": torch.tensor([[True, False]])}).dense()[0].int()
            tensor([[1, 0, 0],
                    [0, 0, 0],
                    [1, 0, 1]], dtype=torch.int32)
        """
        return Layout(self.segments, valid=valid, documents=self.documents, ranks=self.ranks)

    def to(self, device: torch.device | str) -> "Layout":
        """Same layout with its tensors on another device."""
        valid = {name: flags.to(device) for name, flags in self._valid.items()}
        documents, ranks = (None if held is None else held.to(device) for held in (self.documents, self.ranks))
        return Layout(self.segments, valid=valid, documents=documents, ranks=ranks)

    def is_prefix(self, count: int) -> bool:
        """Whether no query of the first `count` positions sees a key after them.

        Then their keys and values do not depend on what comes later: a cache may hold them. Ranks are not read: with
        them, only all positions together are a prefix.

        Raises:
            ValueError: If `count` is not in `[0, length]`.

        Examples:
            >>> layout = Layout([Segment("image", 2), Segment("text", 3, causal=True)])
            >>> [layout.is_prefix(count) for count in range(6)]
            [True, False, True, True, True, True]
        """
        if not 0 <= count <= self.length:
            raise ValueError(f"count: expected 0 to {self.length}, got {count}")
        return all(runs[-1].stop <= count for _, _, runs in self.seen_by(range(count)))

    def seen_by(self, rows: range) -> list[tuple[Segment, range, tuple[range, ...]]]:
        """Each segment that has queries in `rows`: the segment, its queries, and the keys that one of them may see.

        Keys are runs of positions in order, no two of which touch. A mask within them is needed for padding, documents
        and ranks, and for more than one query of a causal segment.

        Examples:
            >>> layout = Layout([Segment("image", 2), Segment("noise", 3, private=True), Segment("action", 4)])
            >>> [(segment.name, own, runs) for segment, own, runs in layout.seen_by(range(4, 9))]
            [('noise', range(4, 5), (range(0, 5),)), ('action', range(5, 9), (range(0, 2), range(5, 9)))]
        """
        seen: list[tuple[Segment, range, tuple[range, ...]]] = []
        for index, own in self._parts(rows):
            segment, span = self.segments[index], self.spans[index]
            stop = own.stop if segment.causal else span.stop
            if self.ranks is not None:
                runs = (range(self.length),)
            elif self._relation is None:
                runs = (range(stop),)
            else:
                start = span.start if segment.window is None else max(span.start, own.start - segment.window + 1)
                keys = [*self.spans[:index], range(start, stop), *self.spans[index + 1 :]]
                runs = merged(held for held, much in zip(keys, self._relation[index], strict=True) if much)
            seen.append((segment, own, runs))
        return seen

    def validity(
        self, span: range | None = None, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "batch seq"] | None:
        """True where a sample has a token, for the positions of `span` (default: all).

        Returns:
            `None` if no segment in `span` has an entry in `valid`; the values of the entries are never looked at.

        Raises:
            ValueError: If `span` is empty or reaches outside the layout.
        """
        span = checked_range("span", span, self.length)
        if not self._valid:
            return None
        parts = self._parts(span)
        if not any(self.segments[index].name in self._valid for index, _ in parts):
            return None
        device = self._device(device)
        flags: list[Tensor] = []
        for index, part in parts:
            own = self.spans[index]
            held = self._valid.get(self.segments[index].name)
            if held is None:
                held = torch.ones(1, 1, dtype=torch.bool, device=device).expand(1, len(own))
            flags.append(held[:, part.start - own.start : part.stop - own.start].to(device).expand(self.batch, -1))
        return torch.cat(flags, dim=-1)

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
        mask = visible(
            each(lambda held: held[..., :, None], rows),
            each(lambda held: held[..., None, :], columns),
            self._relation_on(rows.rank.device),
        )
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
        """FlexAttention block mask, one for all heads and, without tensors for each sample, for the whole batch.

        Memory grows with `(length / block_size)²`, with `length` and, where segments have options, with the square of
        their number, never with `length²`. The block mask can be pickled. Other arguments and errors as in `dense`.
        """
        rows, columns = self._rows_and_columns(queries, keys, device)
        return block_mask(rows, columns, block_size, self._relation_on(rows.rank.device))

    def __str__(self) -> str:
        r"""Table of segments: `#` sees all of a segment, `\` sees it up to itself, `.` sees nothing of it."""
        count = len(self.segments)
        by_rank = ((ITSELF,) * count,) * count
        lines = picture(self.segments, relation(self.segments) if self.ranks is None else by_rank)
        windows = [f"{segment.window} of {segment.name}" for segment in self.segments if segment.window is not None]
        lines += [f"of its own segment, a query sees the last {', '.join(windows)}"] if windows else []
        lines += ["up to its rank, which each sample has its own of"] if self.ranks is not None else []
        padded = [name for name in self.names if name in self._valid]
        lines += [f"padding in {', '.join(padded)} neither sees nor is seen"] if padded else []
        lines += ["documents see only themselves"] if self.documents is not None else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Segments and the names of held tensors, without their content."""
        held = f", valid={sorted(self._valid)}" if self._valid else ""
        held += f", documents={tuple(self.documents.shape)}" if self.documents is not None else ""
        held += f", ranks={tuple(self.ranks.shape)}" if self.ranks is not None else ""
        return f"Layout({list(self.segments)}{held})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        mine, others = self._held(), other._held()
        if self.segments != other.segments or mine.keys() != others.keys():
            return False
        pairs = [(held, others[name]) for name, held in mine.items()]
        return all(a is b or (a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.segments, frozenset((name, held.shape) for name, held in self._held().items())))

    def _held(self) -> dict[tuple[str, str], Tensor]:
        """Every tensor, by name."""
        whole = (("documents", self.documents), ("ranks", self.ranks))
        valid = {("valid", name): flags for name, flags in self._valid.items()}
        return valid | {("all", name): held for name, held in whole if held is not None}

    def _rows_and_columns(
        self, queries: range | None, keys: range | None, device: torch.device | str | None
    ) -> tuple[Positions, Positions]:
        rows, columns = checked_range("queries", queries, self.length), checked_range("keys", keys, self.length)
        return self._positions(rows, device), self._positions(columns, device)

    def _positions(self, span: range, device: torch.device | str | None) -> Positions:
        """What the rule reads of the positions of `span`, each (1, seq) or (batch, seq)."""
        device, parts = self._device(device), self._parts(span)
        starts = [None if self.segments[index].causal else self.spans[index].start for index, _ in parts]
        windows = [self.segments[index].window or self.length for index, _ in parts]
        cut = slice(span.start, span.stop)
        documents, ranks = (None if held is None else held[:, cut].to(device) for held in (self.documents, self.ranks))
        return Positions(
            rank=filled(parts, starts, device) if ranks is None else ranks,
            document=documents,
            valid=self.validity(span, device=device),
            segment=None if self._relation is None else filled(parts, [index for index, _ in parts], device),
            window=filled(parts, windows, device) if min(windows) < self.length else None,
        )

    def _relation_on(self, device: torch.device) -> UInt8[Tensor, "segment segment"] | None:
        if self._relation is None:
            return None
        table = torch.tensor(self._relation, dtype=torch.uint8, device="cpu")
        return table.to(device, non_blocking=True)  # a GPU is not waited for

    def _parts(self, span: range) -> list[tuple[int, range]]:
        """Each segment that has positions in `span`, by its place, and these positions."""
        places = ((index, max(own.start, span.start), min(own.stop, span.stop)) for index, own in enumerate(self.spans))
        return [(index, range(start, stop)) for index, start, stop in places if start < stop]

    def _device(self, device: torch.device | str | None) -> torch.device:
        if device is not None:
            return torch.device(device)
        held = [
            *self._held().values(),
            torch.empty(0),
        ]  # the last is on the default device; its getter cannot be traced
        return held[0].device


def _batch_size(
    spans: Mapping[str, range],
    valid: Mapping[str, Bool[Tensor, "#batch _"]] | None,
    whole: Mapping[str, Int[Tensor, "#batch seq"] | None],
) -> int:
    """Common batch size of validity and of what is given for all positions, 1 if nothing is.

    The run-time shape checker is off for most users, and an unknown name or an integer mask would give a wrong mask.
    """
    if isinstance(valid, Tensor):
        parts = ", ".join(f"{name!r}: valid[:, {span.start}:{span.stop}]" for name, span in spans.items())
        raise ValueError(f"valid: expected a mapping from names of segments, such as {{{parts}}}, got a tensor")
    valid = valid or {}
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
    length = max(span.stop for span in spans.values())
    for name, held in whole.items():
        if held is not None and held.shape[1:] != (length,):
            raise ValueError(f"{name}: expected shape (batch, {length}), got {tuple(held.shape)}")
        sizes.update([] if held is None else [len(held)])
    if len(sizes - {1}) > 1:
        raise ValueError(f"valid, {', '.join(whole)}: expected one batch size or 1, got {sorted(sizes)}")
    return max(sizes, default=1)
