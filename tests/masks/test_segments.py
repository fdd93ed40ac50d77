"""Options of segments, ranks of each sample, equality, and what is refused."""

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from moteur.masks import Layout, Segment, dense_attention, structural_attention

SPECIAL = [
    Segment("left", 4, block="cameras"),
    Segment("text", 3, causal=True, window=2),
    Segment("right", 2, block="cameras"),
    Segment("noise", 2, private=True),
    Segment("absent", 0),
    Segment("action", 3, sees=["right", "left"]),
]


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_a_picture_shows_who_sees_whom() -> None:
    assert str(Layout(SPECIAL)).splitlines() == [
        "6 segments, 14 positions; rows are queries, columns are keys",
        "           0 1 2 3 4 5",
        "0 left   4 # . # . . .",
        "1 text   3 # \\ . . . .",
        "2 right  2 # # # . . .",
        "3 noise  2 # # # # . .",
        "4 absent 0 # # # . # .",
        "5 action 3 # . # . . #",
        "of its own segment, a query sees the last 2 of text",
    ]


def test_a_segment_prints_the_options_that_it_has() -> None:
    assert repr(Segment("text", 48, True)) == "Segment(name='text', length=48, causal=True)"
    assert repr(SPECIAL[1]) == "Segment(name='text', length=3, causal=True, window=2)"
    assert repr(Segment("a", 1, private=True, sees=(), block="b")) == (
        "Segment(name='a', length=1, causal=False, private=True, sees=(), block='b')"
    )


def test_the_order_of_names_that_a_segment_sees_does_not_matter() -> None:
    assert Segment("a", 1, sees=["c", "b", "b"]) == Segment("a", 1, sees={"b", "c"})


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("integer", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_lengths_and_windows_may_be_integers_of_any_library(integer: Any) -> None:  # noqa: ANN401  # that is the point
    segment = Segment("text", integer, causal=True, window=integer)
    assert type(segment.length) is type(segment.window) is int
    assert segment == Segment("text", 3, causal=True, window=3)


@pytest.mark.usefixtures("without_shape_checks")
def test_options_that_do_not_fit_a_segment_are_refused() -> None:
    with refused("length: expected an integer for segment 'a', got 3.0"):
        Segment("a", 3.0)  # pyright: ignore[reportArgumentType]
    with refused("window: expected at least 1 for segment 'a', got 0"):
        Segment("a", 3, causal=True, window=0)
    with refused("window: expected None for bidirectional segment 'a', got 2"):
        Segment("a", 3, window=2)
    with refused("block: expected None for causal segment 'a', got 'b'"):
        Segment("a", 3, causal=True, block="b")
    with refused("sees: expected a collection of names for segment 'a', got 'image'"):
        Segment("a", 3, sees="image")
    with refused("sees: expected names among ['a', 'b'] for segment 'b', got ['c']"):
        Layout([Segment("a", 1), Segment("b", 1, sees=["a", "c"])])


def test_a_segment_without_positions_changes_nothing_for_the_others() -> None:
    """An absent instruction, with its flags, needs no other list of segments."""
    lengths = {"image": 3, "text": 0, "tail": 0, "action": 4}
    causal = {"text", "tail"}
    full = Layout([Segment(name, length, name in causal) for name, length in lengths.items()])
    full = full.with_valid({"image": torch.tensor([[True, True, False]]), "text": torch.ones(1, 0, dtype=torch.bool)})
    short = Layout([Segment("image", 3), Segment("action", 4)], valid={"image": full.valid["image"]})
    assert torch.equal(full.dense(), short.dense())
    assert full.span("text") == range(3, 3)
    held = drawn(1, 2, 7, 4), drawn(1, 1, 7, 4), drawn(1, 1, 7, 4)
    for attention in (dense_attention, structural_attention):
        assert torch.equal(attention(*held, full), attention(*held, short))
    assert torch.equal(full.block_mask(block_size=2).kv_indices, short.block_mask(block_size=2).kv_indices)


def test_equal_layouts_are_one_key_of_a_dictionary() -> None:
    flags = torch.tensor([[True, False, True, True]])
    documents = torch.tensor([[0, 0, 1, 1]])

    def layout(**held: Any) -> Layout:  # noqa: ANN401  # passed on to the layout
        return Layout([Segment("a", 4)], **held)

    given = [{}, {"valid": {"a": flags}}, {"documents": documents}, {"ranks": documents}]
    keys = {layout(**held): index for index, held in enumerate(given)}
    copies = [{}, {"valid": {"a": flags.clone()}}, {"documents": documents.clone()}, {"ranks": documents.clone()}]
    assert [keys[layout(**held)] for held in copies] == [0, 1, 2, 3]
    assert layout(valid={"a": ~flags}) not in keys
    assert layout(documents=documents.int()) != layout(documents=documents)
    assert layout() != Layout([Segment("b", 4)])
    assert layout() != "a layout"


def test_a_layout_moves_to_another_device_with_all_it_holds() -> None:
    here = Layout(SPECIAL, valid={"left": torch.ones(2, 4, dtype=torch.bool)}, documents=torch.zeros(2, 14).long())
    there = here.to("meta")
    assert there.segments == here.segments
    assert there.valid["left"].is_meta
    assert there.documents is not None
    assert there.documents.is_meta
    assert there.dense().is_meta
    assert here.to("cpu") == here
    ranked = Layout([Segment("a", 2)], ranks=torch.tensor([[0, 1]])).to("meta").ranks
    assert ranked is not None
    assert ranked.is_meta


@pytest.mark.parametrize("layout", [Layout(SPECIAL), Layout.from_block_starts([[0, 0, 1, 0], [0, 1, 1, 1]])])
def test_a_block_mask_survives_pickling(layout: Layout) -> None:
    mask = layout.block_mask(block_size=4)
    copied = pickle.loads(pickle.dumps(mask))  # noqa: S301  # what we have just written
    assert torch.equal(copied.kv_indices, mask.kv_indices)
    size = (layout.batch, 1, layout.length, layout.length)
    assert torch.equal(create_mask(copied.mask_mod, *size, device="cpu")[:, 0], layout.dense())


def test_keys_that_end_before_what_a_query_sees_are_refused() -> None:
    layout = Layout(SPECIAL)
    assert [count for count in range(15) if layout.is_prefix(count)] == [0, 9, 11, 14]
    held = drawn(1, 1, 4, 4)
    with refused("key: expected at least 9 positions, all that queries of segment 'left' see, got 4"):
        structural_attention(held, held, held, layout)
    for count in (-1, 15):
        with refused(f"count: expected 0 to 14, got {count}"):
            layout.is_prefix(count)


def test_ranks_decide_in_place_of_the_order_of_segments() -> None:
    ranks = torch.tensor([[0, 0, 1, 2, 1, 2], [3, 0, 0, 0, 0, 3]])
    valid = {"text": torch.tensor([[True, True, False, True]] * 2)}
    layout = Layout([Segment("image", 2), Segment("text", 4)], ranks=ranks, valid=valid)
    flags = torch.tensor([True, True, True, True, False, True])
    expected = (ranks[:, None, :] <= ranks[:, :, None]) & flags[:, None] & flags[None, :]
    assert torch.equal(layout.dense(), expected)
    assert torch.equal(layout.bias(torch.float32)[:, 0] == 0, expected)
    for rows, columns in ((range(6), range(6)), (range(1, 5), range(2, 6))):
        mask = layout.block_mask(rows, columns, block_size=2)
        size = (2, 1, len(rows), len(columns))
        cut = expected[:, rows.start : rows.stop, columns.start : columns.stop]
        assert torch.equal(create_mask(mask.mask_mod, *size, device="cpu")[:, 0], cut)
        some = cut.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).any(dim=-1).any(dim=2)
        assert not (some & (mask.to_dense()[:, 0] == 0)).any()
    assert [count for count in range(7) if layout.is_prefix(count)] == [0, 6]
    assert str(layout).splitlines()[2:] == [
        "0 image 2 \\ \\",
        "1 text  4 \\ \\",
        "up to its rank, which each sample has its own of",
        "padding in text neither sees nor is seen",
    ]
    assert repr(layout).endswith(", valid=['text'], ranks=(2, 6))")
    assert torch.equal(layout.with_valid(None).dense(), ranks[:, None, :] <= ranks[:, :, None])


def test_structural_attention_refuses_ranks_and_dense_attention_takes_them() -> None:
    layout = Layout.from_block_starts([[0, 0, 1], [0, 1, 0]])
    held = drawn(2, 1, 3, 4)
    with refused("layout: expected segments without ranks, got ranks; take dense_attention or flex_attention"):
        structural_attention(held, held, held, layout)
    alone = [
        dense_attention(x[None], x[None], x[None], Layout.from_block_starts(starts))
        for x, starts in zip(held, [[0, 0, 1], [0, 1, 0]], strict=True)
    ]
    torch.testing.assert_close(dense_attention(held, held, held, layout), torch.cat(alone))


@pytest.mark.usefixtures("without_shape_checks")
def test_ranks_that_are_no_ranks_are_refused() -> None:
    for wrong in (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)):
        with refused(f"ranks: expected integers, got {wrong.dtype}"):
            Layout([Segment("a", 2)], ranks=wrong)
    ranks = torch.zeros(1, 3, dtype=torch.long)
    with refused("ranks: expected shape (batch, 2), got (1, 3)"):
        Layout([Segment("a", 2)], ranks=ranks)
    for segment in (Segment("b", 1, causal=True), Segment("b", 1, private=True)):
        with refused(f"ranks: expected segments that are not causal and have no options, got [{segment!r}]"):
            Layout([Segment("a", 2), segment], ranks=ranks)
