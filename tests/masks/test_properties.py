"""What holds for every layout, validity and packing: random masks against the rule read aloud."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from moteur.masks import Layout, Segment

# Examples are the same in every run, and their number bounds the time. All examples share the `device` fixture.
steady = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass
class Case:
    """A random layout with, for each sample, validity and documents as plain lists."""

    segments: list[Segment]
    valid: list[list[bool]]
    documents: list[list[int]]
    ragged: set[str]
    packed: bool

    def layout(self, device: torch.device | str = "cpu", samples: slice = slice(None)) -> Layout:
        segments, valid, at = self.segments, {}, 0
        for segment in segments:
            if segment.name in self.ragged:
                rows = [sample[at : at + segment.length] for sample in self.valid[samples]]
                valid[segment.name] = torch.tensor(rows, dtype=torch.bool, device=device)
            at += segment.length
        documents = torch.tensor(self.documents[samples], device=device) if self.packed else None
        return Layout(segments, valid=valid, documents=documents)

    @property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)

    def sees(self, sample: int, query: int, key: int) -> bool:
        """The rule, read aloud: slow, and independent of ranks."""
        owner = [segment for segment in self.segments for _ in range(segment.length)]
        order = [segment.name for segment in self.segments]
        own, other = owner[query], owner[key]
        if not (self.valid[sample][query] and self.valid[sample][key]):
            return False
        if self.documents[sample][query] != self.documents[sample][key]:
            return False
        if own is other:
            return not own.causal or 0 <= query - key < (own.window or self.length)
        if own.block is not None and own.block == other.block:
            return True
        if own.sees is not None:
            return other.name in own.sees
        return order.index(other.name) < order.index(own.name) and not other.private


@st.composite
def segment_lists(draw: st.DrawFn, *, plain: bool) -> list[Segment]:
    """Up to four segments, empty ones among them; without options, or each with any of them."""
    shapes = draw(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=4).filter(any_position))
    names = [f"s{index}" for index in range(len(shapes))]
    return [
        Segment(name, length, causal, **({} if plain else draw(options(causal, names))))
        for name, (length, causal) in zip(names, shapes, strict=True)
    ]


def options(causal: bool, names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    own = {"window": st.none() | st.integers(1, 3)} if causal else {"block": st.sampled_from([None, "a", "b"])}
    return st.fixed_dictionaries({"private": st.booleans(), "sees": st.none() | st.sets(st.sampled_from(names))} | own)


def any_position(shapes: list[tuple[int, bool]]) -> bool:
    return any(length for length, _ in shapes)


@st.composite
def cases(draw: st.DrawFn, *, per_sample: bool = True, plain: bool = False) -> Case:
    segments = draw(segment_lists(plain=plain or draw(st.booleans())))
    length = sum(segment.length for segment in segments)
    batch = draw(st.integers(1, 3)) if per_sample else 1
    ragged = draw(st.sets(st.sampled_from([segment.name for segment in segments]))) if per_sample else set()
    packed = per_sample and draw(st.booleans())
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    valid = draw(st.lists(row, min_size=batch, max_size=batch))
    owner = [segment.name for segment in segments for _ in range(segment.length)]
    valid = [[flag or name not in ragged for flag, name in zip(sample, owner, strict=True)] for sample in valid]
    ids = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    documents = draw(st.lists(ids, min_size=batch, max_size=batch)) if packed else [[0] * length] * batch
    return Case(segments, valid, documents, ragged, packed)


@st.composite
def ranges(draw: st.DrawFn, length: int) -> range:
    start = draw(st.integers(0, length - 1))
    return range(start, draw(st.integers(start + 1, length)))


def told(case: Case, batch: int) -> Tensor:
    return torch.tensor(
        [[[case.sees(b, q, k) for k in range(case.length)] for q in range(case.length)] for b in range(batch)]
    )


@steady
@given(cases())
def test_the_dense_mask_is_the_rule_read_aloud(device: torch.device, case: Case) -> None:
    layout = case.layout(device)
    assert torch.equal(layout.dense().cpu(), told(case, layout.batch))


@steady
@given(cases(plain=True))
def test_visibility_is_monotone(case: Case) -> None:
    """A valid query sees every key that an earlier valid query of its document sees."""
    layout = case.layout()
    for sample, mask in enumerate(layout.dense()):
        for earlier in range(case.length):
            for later in range(earlier + 1, case.length):
                same = case.documents[sample][earlier] == case.documents[sample][later]
                if same and case.valid[sample][later]:
                    assert not (mask[earlier] & ~mask[later]).any()


@steady
@given(cases(plain=True))
def test_nothing_earlier_sees_anything_later(case: Case) -> None:
    layout = case.layout()
    mask = layout.dense()
    for segment, span in zip(layout.segments, layout.spans, strict=True):
        assert not mask[:, span.start : span.stop, span.stop :].any()
        if segment.causal:
            assert not mask[:, span.start : span.stop, span.start : span.stop].triu(1).any()


@steady
@given(cases())
def test_padding_neither_sees_nor_is_seen(case: Case) -> None:
    layout = case.layout()
    padding = ~torch.tensor(case.valid[: layout.batch])
    mask = layout.dense()
    assert not mask[padding].any()
    assert not mask.transpose(1, 2)[padding].any()


@steady
@given(cases())
def test_every_valid_position_sees_itself(case: Case) -> None:
    layout = case.layout()
    assert torch.equal(layout.dense().diagonal(dim1=1, dim2=2), torch.tensor(case.valid[: layout.batch]))


@steady
@given(cases())
def test_documents_do_not_see_each_other(case: Case) -> None:
    layout = case.layout()
    documents = torch.tensor(case.documents[: layout.batch])
    assert not layout.dense()[documents[:, :, None] != documents[:, None, :]].any()


@steady
@given(st.data(), cases())
def test_any_range_of_queries_and_keys_is_a_crop_of_the_whole_mask(data: st.DataObject, case: Case) -> None:
    layout = case.layout()
    rows, columns = data.draw(ranges(case.length)), data.draw(ranges(case.length))
    whole = layout.dense()[:, rows.start : rows.stop, columns.start : columns.stop]
    assert torch.equal(layout.dense(rows, columns), whole)
    assert torch.equal(layout.bias(torch.float16, rows, columns)[:, 0] == 0, whole)


@steady
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 2**32 - 1))
def test_a_softmax_written_by_hand_over_the_bias_is_the_masked_one_and_finite_in_rows_of_padding(
    case: Case, dtype: torch.dtype, seed: int
) -> None:
    layout = case.layout()
    size = (layout.batch, 2, case.length, case.length)
    # Scores down to -3,000: the lowest float16 number, -65,504, would already overflow with 16 less.
    scores = -1000 * torch.rand(size, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)
    scores, plain = scores.requires_grad_(), scores.detach().clone().requires_grad_()
    mask = layout.dense()[:, None]
    weights = torch.softmax(scores + layout.bias(dtype), dim=-1)
    weights.square().sum().backward()
    expected = torch.softmax(plain.masked_fill(~mask, -torch.inf), dim=-1).where(mask.any(-1, keepdim=True), 0)
    expected.square().sum().backward()
    seeing = mask.any(-1, keepdim=True)
    assert torch.equal(weights.where(seeing, 0), expected)
    assert weights.isfinite().all()
    assert torch.equal(scores.grad.where(seeing, 0), plain.grad.where(seeing, 0))
    assert scores.grad.isfinite().all()


@steady
@given(st.data(), cases())
def test_rows_of_the_joint_mask_equal_those_built_call_by_call(data: st.DataObject, case: Case) -> None:
    """Calls may end with any prefix; each sees the keys that exist by then."""
    layout = case.layout()
    legal = [count for count in range(1, layout.length + 1) if layout.is_prefix(count)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(legal))) | {layout.length})
    joint = torch.zeros(layout.batch, layout.length, layout.length, dtype=torch.bool)
    for start, stop in pairwise([0, *chosen]):
        joint[:, start:stop, :stop] = layout.dense(range(start, stop), range(stop))
    assert torch.equal(joint, layout.dense())


@steady
@given(cases())
def test_the_first_rows_are_a_prefix_exactly_if_their_mask_is_blank_after_them(case: Case) -> None:
    layout = Layout(case.segments)
    mask = layout.dense()[0]
    for count in range(case.length + 1):
        assert layout.is_prefix(count) == (not mask[:count, count:].any())


@steady
@given(cases())
def test_the_picture_shows_each_pair_of_segments_in_the_mask(case: Case) -> None:
    layout = Layout(case.segments)
    mask, (_, _, *rows) = layout.dense()[0], str(layout).splitlines()
    for row, query, segment in zip(rows, layout.spans, case.segments, strict=False):
        for mark, key in zip(row.split()[3:], layout.spans, strict=True):
            seen = mask[query.start : query.stop, key.start : key.stop]
            if seen.numel():
                up_to_itself = segment.length > 1 and segment.causal and query == key
                assert mark == ("\\" if up_to_itself else "#" if seen.all() else ".")
                assert seen.any() == (mark != ".")


@steady
@given(cases())
def test_what_a_segment_sees_is_told_as_runs_of_positions(case: Case) -> None:
    layout = Layout(case.segments)
    mask = layout.dense()[0]
    for first, last in ((0, case.length), (case.length // 2, case.length)):
        for segment, own, runs in layout.seen_by(range(first, last)):
            seen = mask[own.start : own.stop].any(dim=0).nonzero()[:, 0].tolist()
            assert seen == [key for run in runs for key in run]
            assert all(before.stop < after.start for before, after in pairwise(runs))
            assert segment.causal or mask[own.start : own.stop, seen].all()


@steady
@given(st.integers(1, 4), st.integers(1, 4), cases(plain=True))
def test_merging_two_adjacent_bidirectional_segments_only_adds_visibility(first: int, second: int, case: Case) -> None:
    tail = [Segment("first", first), Segment("second", second)]
    apart = Layout([*case.segments, *tail]).dense()[0]
    merged = Layout([*case.segments, Segment("both", first + second)]).dense()[0]
    added = merged & ~apart
    assert not (apart & ~merged).any()
    assert added.sum() == first * second
    assert added[case.length : case.length + first, case.length + first :].all()


@steady
@given(cases())
def test_what_comes_later_does_not_change_what_came_before(case: Case) -> None:
    shorter = case.layout()
    longer = Layout([*case.segments, Segment("later", 3)], valid=shorter.valid).dense()
    without_documents = Layout(case.segments, valid=shorter.valid).dense()
    assert torch.equal(longer[:, : case.length, : case.length], without_documents)


@steady
@given(cases(plain=True))
def test_letting_a_causal_segment_look_ahead_only_adds_visibility(case: Case) -> None:
    causal = case.layout()
    ahead = Layout([Segment(s.name, s.length) for s in case.segments], valid=causal.valid, documents=causal.documents)
    assert not (causal.dense() & ~ahead.dense()).any()


@steady
@given(st.lists(st.integers(0, 1), min_size=1, max_size=16))
def test_block_starts_read_as_their_running_count(starts: list[int]) -> None:
    """The convention itself: a token sees those whose count of starts so far is not above its own."""
    count = torch.tensor([sum(starts[: position + 1]) for position in range(len(starts))])
    assert torch.equal(Layout.from_block_starts(starts).dense()[0], count[None, :] <= count[:, None])


@steady
@given(st.data(), cases(), st.integers(1, 4))
def test_the_block_mask_is_the_dense_mask_seen_in_blocks(data: st.DataObject, case: Case, block_size: int) -> None:
    layout = case.layout()
    spans = st.one_of(st.just(range(case.length)), ranges(case.length))
    rows, columns = data.draw(spans), data.draw(spans)
    blocks = layout.block_mask(rows, columns, block_size=block_size)
    dense = layout.dense(rows, columns)
    size = (layout.batch, 1, len(rows), len(columns))
    assert torch.equal(create_mask(blocks.mask_mod, *size, device="cpu")[:, 0], dense)

    expected = create_block_mask(lambda b, _, q, k: dense[b, q, k], *size, device="cpu", BLOCK_SIZE=block_size)
    full, partial, expected_full, expected_partial = (
        listed(*part)
        for found in (blocks, expected)
        for part in ((found.full_kv_num_blocks, found.full_kv_indices), (found.kv_num_blocks, found.kv_indices))
    )
    assert not (full & ~expected_full).any()
    assert not ((expected_full | expected_partial) & ~(full | partial)).any()
    assert not (full & partial).any()
    certain = all(segment.plain or (segment.length and segment.window is None) for segment in case.segments)
    ordered = all(layout.is_prefix(span.stop) for span in layout.spans)
    if certain and ordered and not case.ragged and not case.packed:  # then bounds decide exactly
        assert torch.equal(full, expected_full)
        assert torch.equal(partial, expected_partial)
    assert torch.equal(listed(blocks.q_num_blocks, blocks.q_indices), partial.transpose(-1, -2))
    assert torch.equal(listed(blocks.full_q_num_blocks, blocks.full_q_indices), full.transpose(-1, -2))


def test_blocks_without_a_token_are_visited_neither_as_queries_nor_as_keys() -> None:
    valid = torch.tensor([[True] * 2 + [False] * 4 + [True] * 2])
    blocks = Layout([Segment("all", 8)], valid={"all": valid}).block_mask(block_size=2)
    full = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    assert full[0, 0].int().tolist() == [[1, 0, 0, 1], [0] * 4, [0] * 4, [1, 0, 0, 1]]
    assert not listed(blocks.kv_num_blocks, blocks.kv_indices).any()


def listed(count: Tensor | None, indices: Tensor | None) -> Tensor:
    """The block lists of a block mask as a boolean table."""
    assert count is not None
    assert indices is not None
    table = torch.zeros(indices.shape, dtype=torch.bool)
    named = torch.arange(indices.shape[-1]) < count[..., None]
    return table.scatter(-1, indices.long(), named)
