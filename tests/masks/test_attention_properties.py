"""Three ways to attend, one result: random layouts against a slow softmax, and against each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moteur.masks import Layout, Segment, dense_attention, flex_attention, structural_attention

# Examples are the same in every run, and their number bounds the time. All examples share the fixtures.
steady = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# FlexAttention is asked here for what is right, not for speed: uncompiled it warns that it is slow, once in a process.
# It traces what it calls, which the run-time shape checker prevents, hence `without_shape_checks`.
uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
flexible = pytest.mark.usefixtures("without_shape_checks")
# Scores are sums of 4 products of order 10, outputs averages of at most 20 values of order 5. A hundred roundings of
# 2e-16 relative to either stay below this; their gradients are sums of a few dozen such terms.
ROUNDING = 1e-12
fewer = settings(steady, max_examples=20)  # FlexAttention is traced anew for each kind of layout
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 4

Attention = Callable[..., Tensor]
masked = pytest.mark.parametrize("attention", [dense_attention, structural_attention])
every = pytest.mark.parametrize("attention", [dense_attention, structural_attention, flex_attention])


@dataclass
class Drawn:
    """What a layout is made of. The layout itself is made in the test: its checks must not run while drawing."""

    segments: list[Segment]
    ragged: set[str]
    packed: bool
    batch: int
    kept: float
    seed: int

    def layout(self, device: torch.device, samples: slice = slice(None)) -> Layout:
        generator = torch.Generator().manual_seed(self.seed)
        flags = {s.name: torch.rand(self.batch, s.length, generator=generator) < self.kept for s in self.segments}
        length = sum(segment.length for segment in self.segments)
        documents = torch.randint(0, 3, (self.batch, length), generator=generator)
        return Layout(
            self.segments,
            valid={name: flags[name][samples].to(device) for name in sorted(self.ragged)},
            documents=documents[samples].to(device) if self.packed else None,
        )

    @property
    def ends(self) -> list[int]:
        """Where a call may end: nothing before it sees anything after it."""
        mask = Layout(self.segments).dense()[0]
        return [count for count in range(1, len(mask) + 1) if not mask[:count, count:].any()]


@st.composite
def drawings(draw: st.DrawFn, *, one_size: bool = False) -> Drawn:
    """A few segments, with or without options; some ragged, from all padding to nearly none; packed or not.

    With `one_size` all have 16 positions: FlexAttention traces every new size for about a second.
    """
    if one_size:
        cuts = [0, *sorted(draw(st.sets(st.integers(1, 15), max_size=4))), 16]
        shapes = [(stop - start, draw(st.booleans())) for start, stop in pairwise(cuts)]
    else:
        shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4))
    names = [f"s{index}" for index in range(len(shapes))]
    segments = [Segment(name, *shape) for name, shape in zip(names, shapes, strict=True)]
    if draw(st.booleans()):
        options = {"private": st.booleans(), "sees": st.none() | st.sets(st.sampled_from(names))}
        last = [
            {"window": st.none() | st.integers(1, 4)} if s.causal else {"block": st.none() | st.just("block")}
            for s in segments
        ]
        segments = [
            replace(s, **draw(st.fixed_dictionaries(options | own))) for s, own in zip(segments, last, strict=True)
        ]
    return Drawn(
        segments,
        ragged=draw(st.sets(st.sampled_from([segment.name for segment in segments]))),
        packed=draw(st.booleans()),
        batch=draw(st.sampled_from([1, 2])),
        kept=draw(st.sampled_from([0.0, 0.3, 0.9])),
        seed=draw(st.integers(0, 1000)),
    )


def tensors(layout: Layout, device: torch.device, *, gradient: bool) -> list[Tensor]:
    """Query, key, value, and a direction to differentiate along."""
    generator = torch.Generator().manual_seed(layout.length)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    drawn = [
        2 * torch.randn(2, count, layout.length, HEAD_DIM, generator=generator, dtype=torch.float64) for count in heads
    ]
    return [held.to(device).requires_grad_(gradient and index < 3) for index, held in enumerate(drawn)]


def slow(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention written for one row at a time, over the keys it sees and no others."""
    rows: list[Tensor] = []
    for b, h, q in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        seen = mask[b, q]
        keys, values = key[b, h // (HEADS // KV_HEADS), seen], value[b, h // (HEADS // KV_HEADS), seen]
        weight = torch.softmax(keys @ query[b, h, q] / HEAD_DIM**0.5, dim=0)
        rows.append(weight @ values)
    return torch.stack(rows).reshape(query.shape)


def gradients(output: Tensor, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((output * direction).sum(), inputs))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=ROUNDING, atol=ROUNDING)


@masked
@steady
@given(drawn=drawings())
def test_attention_and_its_gradients_equal_the_slow_softmax(
    device: torch.device, attention: Attention, drawn: Drawn
) -> None:
    cpu = torch.device("cpu")
    layout = drawn.layout(cpu)
    *inputs, direction = tensors(layout, cpu, gradient=True)
    expected = slow(*inputs, layout.dense().expand(2, -1, -1))
    *moved, moved_direction = tensors(layout, device, gradient=True)
    output = attention(*moved, drawn.layout(device))
    assert_close(output.cpu(), expected)
    expected_gradients = gradients(expected, inputs, direction)
    for actual, wanted in zip(gradients(output, moved, moved_direction), expected_gradients, strict=True):
        assert_close(actual.cpu(), wanted)


@uncompiled
@flexible
@fewer
@given(drawn=drawings(one_size=True), first=st.sampled_from([0, 11]))
def test_flex_equals_dense_and_so_do_its_gradients_where_the_device_has_them(
    device: torch.device, drawn: Drawn, first: int
) -> None:
    """FlexAttention has no gradients on a CPU."""
    layout = drawn.layout(device)
    *inputs, direction = tensors(layout, device, gradient=device.type == "cuda")
    rows = range(first, 16)
    call = (inputs[0][:, :, rows.start :], *inputs[1:], layout)
    output = flex_attention(*call, block_mask=layout.block_mask(rows, block_size=4))
    expected = dense_attention(*call)
    assert_close(output, expected)
    if output.requires_grad:
        direction = direction[:, :, rows.start :]
        wanted = gradients(expected, inputs, direction)
        for actual, known in zip(gradients(output, inputs, direction), wanted, strict=True):
            assert_close(actual, known)


@uncompiled
@flexible
@every
@fewer
@given(drawn=drawings(one_size=True))
def test_padding_gets_exact_zeros_in_output_and_gradient(
    device: torch.device, attention: Attention, drawn: Drawn
) -> None:
    """FlexAttention has no gradients on a CPU."""
    layout = drawn.layout(device)
    differentiable = attention is not flex_attention or device.type == "cuda"
    *inputs, direction = tensors(layout, device, gradient=differentiable)
    blind = ~layout.dense(device=device).any(dim=-1).expand(2, -1)
    output = attention(*inputs, layout)
    assert output.isfinite().all()
    assert not output.transpose(1, 2)[blind].any()
    if differentiable:
        for gradient in gradients(output, inputs, direction):
            assert gradient.isfinite().all()
            assert not gradient.transpose(1, 2)[blind].any()


@masked
@steady
@given(drawn=drawings())
def test_a_batch_equals_its_samples_one_by_one(device: torch.device, attention: Attention, drawn: Drawn) -> None:
    """A layout with one row of validity or documents serves every sample."""
    layout = drawn.layout(device)
    query, key, value, _ = tensors(layout, device, gradient=False)
    together = attention(query, key, value, layout)
    for index in range(2):
        own = slice(index, index + 1)
        alone = drawn.layout(device, own if drawn.batch == 2 else slice(None))
        assert_close(together[own], attention(query[own], key[own], value[own], alone))


@masked
@steady
@given(data=st.data(), drawn=drawings())
def test_any_sequence_of_calls_equals_the_joint_call(
    device: torch.device, attention: Attention, data: st.DataObject, drawn: Drawn
) -> None:
    """Each call is given the keys that exist by then."""
    layout = drawn.layout(device)
    ends = sorted(data.draw(st.sets(st.sampled_from(drawn.ends))) | {layout.length})
    query, key, value, _ = tensors(layout, device, gradient=False)
    parts = [
        attention(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], layout)
        for start, stop in pairwise([0, *ends])
    ]
    assert_close(torch.cat(parts, dim=2), attention(query, key, value, layout))


@masked
@steady
@given(data=st.data(), drawn=drawings())
def test_a_query_does_not_depend_on_what_it_cannot_see(
    device: torch.device, attention: Attention, data: st.DataObject, drawn: Drawn
) -> None:
    layout = drawn.layout(device)
    query, key, value, _ = tensors(layout, device, gradient=False)
    hidden = data.draw(st.integers(0, layout.length - 1))
    changed_key, changed_value = key.clone(), value.clone()
    changed_key[:, :, hidden] += 100.0
    changed_value[:, :, hidden] -= 100.0
    unaware = ~layout.dense(device=device)[:, :, hidden].expand(2, -1)
    before, after = (attention(query, *held, layout) for held in ((key, value), (changed_key, changed_value)))
    assert_close(after.transpose(1, 2)[unaware], before.transpose(1, 2)[unaware])
