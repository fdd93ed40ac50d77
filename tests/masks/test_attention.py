"""How each way to attend goes about it: kernel calls, masks, precision, compilation, refusals."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import moteur.masks
from moteur.masks import Layout, Segment, dense_attention, flex_attention, structural_attention

Attention = Callable[..., Tensor]
every = pytest.mark.parametrize("attention", [dense_attention, structural_attention, flex_attention])
# Uncompiled, FlexAttention warns once in a process that it is slow, which does not matter here.
uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
flexible = pytest.mark.usefixtures("without_shape_checks")

A1 = Layout([Segment("und", 9), Segment("gen", 6), Segment("state", 1), Segment("action", 5)])


def drawn(*shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(
        device=device, dtype=dtype
    )


def inputs(layout: Layout, **options: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401  # passed on to `drawn`
    return (
        drawn(2, 4, layout.length, 8, **options),
        drawn(2, 2, layout.length, 8, **options),
        drawn(2, 2, layout.length, 8, **options).flip(2),
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What structural attention asks of the kernel."""
    seen: list[dict[str, Any]] = []

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401  # the kernel's options
        mask = options.get("attn_mask")
        seen.append(
            {
                "keys": key.shape[2],
                "mask": None if mask is None else tuple(mask.shape),
                "causal": "is_causal" in options,
            }
        )
        return scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr("moteur.masks.attention.scaled_dot_product_attention", spy)
    return seen


@uncompiled
@flexible
@every
def test_equal_scores_average_the_values_that_are_visible(device: torch.device, attention: Attention) -> None:
    query, key, value = (held.to(device) for held in inputs(A1))
    mask = A1.dense(device=device)[:, None].double()
    expected = (mask / mask.sum(-1, keepdim=True)) @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(attention(torch.zeros_like(query), key, value, A1), expected, rtol=1e-14, atol=1e-14)


def test_bidirectional_segments_need_one_call_each_and_no_mask(calls: list[dict[str, Any]]) -> None:
    structural_attention(*inputs(A1), A1)
    assert calls == [{"keys": keys, "mask": None, "causal": False} for keys in (9, 15, 16, 21)]


def test_a_causal_first_segment_uses_the_kernels_causal_mode(calls: list[dict[str, Any]]) -> None:
    layout = Layout([Segment("text", 6, causal=True), Segment("action", 2)])
    structural_attention(*inputs(layout), layout)
    assert calls == [{"keys": 6, "mask": None, "causal": True}, {"keys": 8, "mask": None, "causal": False}]


def test_decoding_one_causal_token_needs_no_mask(calls: list[dict[str, Any]]) -> None:
    layout = Layout([Segment("prefix", 3), Segment("text", 6, causal=True)])
    query, key, value = inputs(layout)
    structural_attention(query[:, :, 5:6], key[:, :, :6], value[:, :, :6], layout)
    assert calls == [{"keys": 6, "mask": None, "causal": False}]


def test_a_later_causal_segment_masks_its_own_rows_only(calls: list[dict[str, Any]]) -> None:
    layout = Layout([Segment("prefix", 3), Segment("text", 6, causal=True), Segment("action", 2)])
    query, key, value = inputs(layout)
    structural_attention(query[:, ::2], key, value, layout)  # as many query heads as key heads
    assert [call["mask"] for call in calls] == [None, (1, 1, 6, 9), None]


def test_padding_masks_keys_from_the_ragged_segment_on(calls: list[dict[str, Any]]) -> None:
    ragged = A1.with_valid({"gen": torch.tensor([[True] * 6, [True] * 3 + [False] * 3])})
    structural_attention(*inputs(A1), ragged)
    assert [call["mask"] for call in calls] == [None, (2, 1, 1, 15), (2, 1, 1, 16), (2, 1, 1, 21)]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@uncompiled
@flexible
def test_low_precision_errs_no_more_than_plain_attention_in_it_does(
    device: torch.device, attention: Attention, dtype: torch.dtype
) -> None:
    """Twice the error of softmax written out in that precision: the parts are added up in another order."""
    query, key, value = inputs(A1, device=device, dtype=dtype)
    exact = dense_attention(query.double(), key.double(), value.double(), A1)
    keys, values = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    scores = query @ keys.mT / 8**0.5 + A1.bias(dtype, device=device)
    plain = (torch.softmax(scores, dim=-1) @ values - exact).abs().max()
    output = attention(query, key, value, A1)
    assert output.dtype == dtype
    assert (output - exact).abs().max() <= 2 * plain


def test_a_kernel_given_the_bias_agrees_with_dense_attention_and_is_finite_in_rows_of_padding(
    device: torch.device,
) -> None:
    layout = A1.with_valid({"und": torch.zeros(2, 9, dtype=torch.bool, device=device)})
    held = [tensor.to(device).repeat_interleave(4 // tensor.shape[1], dim=1).requires_grad_() for tensor in inputs(A1)]
    output = scaled_dot_product_attention(*held, attn_mask=layout.bias(torch.float64))
    expected = dense_attention(*held, layout)
    torch.testing.assert_close(output[:, :, 9:], expected[:, :, 9:])
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), held))


@every
@flexible
def test_one_graph_serves_every_validity_without_recompiling(device: torch.device, attention: Attention) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(partial(attention), fullgraph=True, backend=backend)
    held = inputs(A1, device=device)
    for seed in range(3):
        flags = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed)) < 0.6
        ragged = A1.with_valid({"und": flags.to(device)})
        output = compiled(*held, ragged)
        torch.testing.assert_close(output, dense_attention(*held, ragged), rtol=1e-12, atol=1e-12)
    assert len(graphs) == 1


def test_layouts_of_every_kind_can_be_made_inside_a_compiled_graph() -> None:
    """In a process of its own: the run-time shape checker, which is on in this one, cannot be traced."""
    program = """
import torch
from moteur.masks import Layout, Segment, dense_attention, joined_attention, structural_attention
def attend(query, key, flags, documents, starts):
    plain = Layout([Segment("und", 9), Segment("action", 5)]).with_valid({"und": flags})
    packed = Layout([Segment("text", 9, causal=True), Segment("action", 5)], documents=documents)
    special = Layout(
        [
            Segment("left", 3, block="cameras"),
            Segment("text", 4, causal=True, window=2),
            Segment("right", 2, block="cameras"),
            Segment("codes", 2, private=True),
            Segment("absent", 0),
            Segment("action", 3, sees=["left", "right"]),
        ],
        valid={"text": flags[:, :4]},
    )
    streams = {"vlm": special.names[:5], "act": "action"}
    joined = joined_attention(special, streams, order=["vlm", "act"], lengths={"act": 3}, insulated=["vlm"])
    ranked = Layout.from_block_starts(starts)
    return [
        structural_attention(query, key, key, plain),
        structural_attention(query, key, key, packed),
        joined(query, key, key),
        dense_attention(query, key, key, special, insulated=["left"]),
        dense_attention(query, key, key, ranked),
        special.bias(torch.float32),
        ranked.block_mask(block_size=4).kv_num_blocks,
    ]
held = (
    *(torch.randn(2, heads, 14, 8).requires_grad_() for heads in (4, 2)),
    *(torch.rand(2, size) < 0.6 for size in (9, 14, 14)),
)
compiled = torch.compile(attend, fullgraph=True, backend="eager")
print([torch.equal(*pair) for pair in zip(compiled(*held), attend(*held))])
"""
    root = Path(moteur.masks.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)  # noqa: S603  # our own interpreter and program
    assert (done.stdout, done.returncode) == (f"{[True] * 7}\n", 0), done.stderr


@pytest.mark.parametrize("attention", [dense_attention, structural_attention])
def test_nothing_is_read_back_from_the_device(attention: Attention) -> None:
    """A tensor on the meta device has no values: reading one would fail."""
    layout = Layout(
        [*A1.segments, Segment("text", 4, causal=True)],
        valid={"und": torch.ones(2, 9, dtype=torch.bool, device="meta")},
        documents=torch.zeros(2, 25, dtype=torch.long, device="meta"),
    )
    special = [Segment("und", 9, block="a"), Segment("text", 4, causal=True, window=2), Segment("gen", 12, block="a")]
    for each in (layout, layout.with_valid(None), A1.with_valid(layout.valid), Layout(special, valid=layout.valid)):
        query, key, value = inputs(each, device="meta")
        assert attention(query, key, value, each).shape == query.shape


@pytest.mark.cuda
@pytest.mark.parametrize("attention", [dense_attention, structural_attention])
def test_a_gpu_is_never_waited_for(attention: Attention) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ragged = A1.with_valid({"und": torch.ones(2, 9, dtype=torch.bool, device="cuda")})
    held = inputs(A1, device="cuda")
    attention(*held, ragged)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(*held, ragged)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@uncompiled
@flexible
def test_a_block_mask_at_hand_is_used_and_must_fit(device: torch.device) -> None:
    held = inputs(A1, device=device)
    shut = Layout([Segment("text", 21, causal=True)]).block_mask(device=device)
    causal = dense_attention(*held, Layout([Segment("text", 21, causal=True)]))
    torch.testing.assert_close(flex_attention(*held, A1, block_mask=shut), causal, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"block_mask was created for .* but got q_len=21"):  # PyTorch's own check
        flex_attention(*held, A1, block_mask=A1.block_mask(A1.span("action"), device=device))
    three = A1.with_valid({"und": torch.ones(3, 9, dtype=torch.bool, device=device)}).block_mask(device=device)
    with pytest.raises(ValueError, match="block_mask: expected 1 or 2 samples and 1 or 4 heads, got 3 and 1"):
        flex_attention(*held, A1, block_mask=three)


@flexible
@every
def test_what_does_not_belong_together_is_refused_instead_of_broadcast(attention: Attention) -> None:
    query, key, value = inputs(A1)

    def refused(message: str, *held: Tensor) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            attention(*held, A1)

    shape = "key, value: expected shape (2, a divisor of 4, key, 8) like query, got"
    refused(f"{shape} (2, 2, 21, 8) and (2, 2, 20, 8)", query, key, value[:, :, 1:])
    refused(f"{shape} (2, 2, 21, 8) and (1, 2, 21, 8)", query, key, value[:1])
    refused(f"{shape} (2, 2, 21, 8) and (2, 1, 21, 8)", query, key, value[:, :1])
    refused(f"{shape} (1, 2, 21, 8) and (1, 2, 21, 8)", query, key[:1], value[:1])
    refused(f"{shape} (2, 2, 21, 4) and (2, 2, 21, 4)", query, key[..., :4], value[..., :4])
    refused(f"{shape} (2, 4, 21, 8) and (2, 4, 21, 8)".replace("of 4", "of 2"), key, query, query)


@uncompiled
@flexible
@every
def test_whatever_finite_numbers_padding_holds_no_bit_changes(device: torch.device, attention: Attention) -> None:
    flags = torch.rand(2, 15, generator=torch.Generator().manual_seed(3)) < 0.5
    flags[1, :9] = False
    ragged = A1.with_valid({"und": flags[:, :9].to(device), "gen": flags[:, 9:].to(device)})
    padding = ~ragged.validity(device=device)[:, None, :, None]
    held = inputs(A1, device=device)
    clean = attention(*(tensor.masked_fill(padding, 0.0) for tensor in held), ragged)
    for garbage in (1e-300, -7.0, 1e30):
        assert torch.equal(attention(*(tensor.masked_fill(padding, garbage) for tensor in held), ragged), clean)
    padding[1] = False
    for garbage in (torch.inf, torch.nan):  # zero times this is NaN, in the sample that holds it and no other
        spoilt = attention(*(tensor.masked_fill(padding, garbage) for tensor in held), ragged)
        assert torch.equal(spoilt[1], attention(*held, ragged)[1])


@every
def test_calls_that_do_not_fit_the_layout_are_refused(attention: Attention) -> None:
    query, key, value = inputs(A1)

    def refused(message: str, queries: slice, keys: slice, layout: Layout = A1, rows: range | None = None) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            attention(query[:, :, queries], key[:, :, keys], value[:, :, keys], layout, rows)

    whole = slice(None)
    shorter = Layout(A1.segments[:3])
    beyond = "key: expected a non-empty range of step 1 within range(0, 16), got range(0, 21)"
    refused(beyond, whole, whole, shorter)
    inside = "queries: expected a non-empty range of step 1 within range(0, 15), got"
    refused(f"{inside} range(-6, 15)", whole, slice(15))
    refused("queries: expected the 5 positions of query, got range(0, 9)", slice(5), whole, rows=A1.span("und"))
    refused(f"{inside} range(16, 21)", slice(5), slice(15), rows=range(16, 21))
    cut = "key: expected at least 15 positions, all that queries of segment 'gen' see, got 12"
    refused(cut, slice(12), slice(12))
    three = A1.with_valid({"und": torch.ones(3, 9, dtype=torch.bool)})
    refused("query: expected the layout's batch size, 3, got 2", whole, whole, three)
