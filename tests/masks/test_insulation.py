"""Keys and values without a gradient for other queries, and attention that is held against the streams of a model."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moteur.masks import Layout, Segment, dense_attention, joined_attention, structural_attention
from moteur.mot import Expert, MoT

Attention = Callable[..., Tensor]
both = pytest.mark.parametrize("attention", [dense_attention, structural_attention])
ROUNDING = 1e-12  # sums of some dozen terms of order 10, in float64

SEGMENTS = [
    Segment("images", 4),
    Segment("text", 3, causal=True),
    Segment("codes", 2, causal=True, private=True),
    Segment("state", 1),
    Segment("flow", 3),
]
LAYOUTS = {
    "knowledge insulation": Layout(SEGMENTS),
    "padding": Layout(SEGMENTS, valid={"text": torch.tensor([[True, True, False], [False] * 3])}),
    "documents": Layout(SEGMENTS, documents=torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1]] * 2)),
}
INSULATED = [("images", "text", "codes"), ("text",), ("images", "flow"), tuple(segment.name for segment in SEGMENTS)]
arrangements = pytest.mark.parametrize("insulated", INSULATED, ids="-".join)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def drawn(length: int) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and a direction to differentiate along."""
    draw = torch.Generator().manual_seed(length)
    *held, direction = [torch.randn(2, heads, length, 4, generator=draw, dtype=torch.float64) for heads in (4, 2, 2, 4)]
    return [tensor.requires_grad_() for tensor in held], direction


def oracle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """Softmax of two products written out: keys with their gradient, and without where only the query is outside."""
    keys, values = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    cut = ~inside[:, None] & inside[None, :]
    scores = torch.where(cut, query @ keys.detach().mT, query @ keys.mT) / 2
    weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1).nan_to_num(0.0)
    return weights.masked_fill(cut, 0.0) @ values + weights.masked_fill(~cut, 0.0) @ values.detach()


@both
@layouts
@arrangements
def test_gradients_stop_at_what_is_insulated_and_values_stay(
    attention: Attention, layout: Layout, insulated: tuple[str, ...]
) -> None:
    held, direction = drawn(layout.length)
    inside = torch.tensor([segment.name in insulated for segment in layout.segments for _ in range(segment.length)])
    blind = ~layout.dense().any(dim=-1).expand(2, -1)
    expected = oracle(*held, layout.dense(), inside)
    wanted = torch.autograd.grad((expected * direction).masked_fill(blind[:, None, :, None], 0.0).sum(), held)
    output = attention(*held, layout, insulated=insulated)
    torch.testing.assert_close(output, attention(*held, layout), rtol=ROUNDING, atol=ROUNDING)
    actual = torch.autograd.grad((output * direction).sum(), held)
    for gradient, known in zip(actual, wanted, strict=True):
        torch.testing.assert_close(gradient, known, rtol=ROUNDING, atol=ROUNDING)


@both
def test_some_rows_over_cached_keys_are_insulated_as_in_the_joint_call(attention: Attention) -> None:
    layout, (held, direction) = LAYOUTS["padding"], drawn(13)
    query, key, value = held

    def gradients(output: Tensor, rows: slice) -> tuple[Tensor, ...]:
        return torch.autograd.grad((output * direction[:, :, rows]).sum(), (key, value))

    whole = attention(*held, layout, insulated=["images", "text"])
    parts = [
        attention(query[:, :, rows], key, value, layout, range(13)[rows], insulated=["images", "text"])
        for rows in (slice(5), slice(5, 13))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=ROUNDING, atol=ROUNDING)
    summed = [
        sum(pair)
        for pair in zip(
            *(gradients(part, rows) for part, rows in zip(parts, (slice(5), slice(5, 13)), strict=True)), strict=True
        )
    ]
    for actual, known in zip(summed, gradients(whole, slice(13)), strict=True):
        torch.testing.assert_close(actual, known, rtol=ROUNDING, atol=ROUNDING)


@both
def test_without_gradients_nothing_is_copied(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = drawn(13)
    with torch.no_grad():
        expected = attention(*held, LAYOUTS["padding"])
        monkeypatch.setattr(Tensor, "detach", None)
        assert torch.equal(attention(*held, LAYOUTS["padding"], insulated=["images"]), expected)


@both
def test_an_insulated_segment_that_is_not_there_is_refused(attention: Attention) -> None:
    with refused("insulated: expected names among ['images', 'text', 'codes', 'state', 'flow'], got ['vlm']"):
        attention(*drawn(13)[0], LAYOUTS["padding"], insulated=["vlm", "text"])


STREAMS = {"vlm": ["images", "text", "codes"], "act": ["state", "flow"]}


def mot() -> MoT:
    shared = {"depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 4}
    torch.manual_seed(0)
    return MoT({"vlm": Expert(dim=8, mlp_dim=8, **shared), "act": Expert(dim=6, mlp_dim=8, **shared)})


def tokens(vlm: int = 9, act: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"vlm": torch.randn(2, vlm, 8, generator=draw), "act": torch.randn(2, act, 6, generator=draw)}


def test_a_vlm_trained_by_its_codes_gets_no_gradient_from_the_flow() -> None:
    """In a MoT: what the action expert says changes no weight of the other, and its own as before."""
    model, layout = mot(), Layout(SEGMENTS)

    def gradients(**options: Any) -> dict[str, Tensor | None]:  # noqa: ANN401  # passed on
        attention = joined_attention(layout, STREAMS, order=model.experts, **options)
        loss = model(tokens(), attention=attention, outputs=("act",))["act"].square().sum()
        held = dict(model.named_parameters())
        return dict(zip(held, torch.autograd.grad(loss, list(held.values()), allow_unused=True), strict=True))

    free, insulated = gradients(), gradients(insulated=["vlm"])
    assert any(found is not None and found.any() for name, found in free.items() if "vlm" in name)
    assert all(found is None or not found.any() for name, found in insulated.items() if "vlm" in name)
    for name, found in insulated.items():
        if "act" in name:
            torch.testing.assert_close(found, free[name], rtol=1e-5, atol=1e-6)  # float32


def test_joined_attention_is_structural_attention_in_the_joint_call_and_over_a_cache() -> None:
    layout, (held, _) = Layout(SEGMENTS), drawn(13)
    attention = joined_attention(layout, STREAMS, order=("vlm", "gen", "act"), lengths={"vlm": 9, "act": 4})
    query, key, value = held
    assert torch.equal(attention(query, key, value), structural_attention(query, key, value, layout))
    prefix = query[:, :, :9], key[:, :, :9], value[:, :, :9]
    assert torch.equal(attention(*prefix), structural_attention(*prefix, layout))
    last = query[:, :, 10:], key, value
    assert torch.equal(attention(*last), structural_attention(*last, layout))


def test_a_layout_in_another_order_than_the_streams_is_refused_when_joined() -> None:
    layout = Layout([Segment("state", 1), Segment("flow", 3), Segment("images", 4)])
    streams = {"vlm": "images", "act": ["state", "flow"]}
    expected = "layout: expected the segments of streams vlm, act: images, state, flow, got state, flow, images"
    with refused(expected):
        joined_attention(layout, streams, order=mot().experts)
    joined_attention(layout, streams, order=["act", "vlm"])
    with refused("layout: expected the segments of streams vlm: images, got state, flow, images"):
        joined_attention(layout, {"vlm": "images"}, order=["vlm", "act"])


def test_streams_that_are_not_there_are_refused() -> None:
    layout = Layout(SEGMENTS)
    for options in (
        {"order": ["vlm"]},
        {"order": ["vlm", "act"], "insulated": ["gen"]},
        {"order": ["vlm", "act"], "lengths": {"gen": 1}},
    ):
        with pytest.raises(ValueError, match=r"^streams: expected some of \['vlm'.*\], got \['(act|gen)'\]$"):
            joined_attention(layout, STREAMS, **options)


def test_streams_of_another_length_are_refused_when_joined_or_when_keys_arrive() -> None:
    layout, model = Layout(SEGMENTS), mot()
    with refused("lengths: expected 9 tokens of stream 'vlm', positions of images, text, codes, got 8"):
        joined_attention(layout, STREAMS, order=model.experts, lengths={"vlm": 8, "act": 5})
    attention = joined_attention(layout, STREAMS, order=model.experts)
    assert model(tokens(), attention=attention)["act"].shape == (2, 4, 6)
    for vlm, act in ((9, 3), (8, 4), (9, 5)):
        with refused(f"key: expected whole streams, which end at 9, 13, got {vlm + act}"):
            model(tokens(vlm, act), attention=attention)
