"""Building, asking and printing a layout, and every refusal."""

import copy
import pickle
import re

import pytest
import torch

from moteur.masks import Layout, Segment


@pytest.fixture
def layout() -> Layout:
    return Layout([Segment("und", 4), Segment("text", 2, causal=True), Segment("action", 3)])


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_a_layout_tells_its_names_spans_and_length(layout: Layout) -> None:
    assert layout.names == ("und", "text", "action")
    assert layout.spans == (range(4), range(4, 6), range(6, 9))
    assert layout.length == 9
    assert layout.batch == 1
    assert layout.span("text") == range(4, 6)
    assert layout.span("und", "text") == range(6)
    assert layout.documents is None
    assert layout.valid == {}


def test_a_layout_cannot_be_changed(layout: Layout) -> None:
    flags = {"und": torch.ones(1, 4, dtype=torch.bool)}
    ragged = layout.with_valid(flags)
    flags.clear()
    ragged.valid.clear()  # pyright: ignore[reportAttributeAccessIssue]  # the copy that is handed out
    assert list(ragged.valid) == ["und"]
    for name in ("segments", "names", "spans", "length", "valid", "documents", "batch", "other"):
        with pytest.raises(AttributeError):
            setattr(layout, name, None)


def test_a_layout_survives_pickling_and_copying(layout: Layout) -> None:
    ragged = layout.with_valid({"und": torch.tensor([[True, False, True, True]])})
    for copied in (pickle.loads(pickle.dumps(ragged)), copy.deepcopy(ragged)):  # noqa: S301  # what we have just written
        assert repr(copied) == repr(ragged)
        assert torch.equal(copied.dense(), ragged.dense())


def test_another_validity_leaves_segments_and_documents(layout: Layout) -> None:
    documents = torch.zeros(2, 9, dtype=torch.long)
    valid = {"und": torch.tensor([[True, True, False, False], [True] * 4])}
    packed = Layout(layout.segments, documents=documents).with_valid(valid)
    assert packed.segments == layout.segments
    assert packed.documents is documents
    assert packed.batch == 2
    assert torch.equal(packed.dense(), Layout(layout.segments, valid=valid, documents=documents).dense())
    assert packed.with_valid(None).valid == {}


def test_one_row_of_documents_serves_every_row_of_validity(layout: Layout) -> None:
    documents = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 1]])
    valid = {"action": torch.tensor([[True, False, True], [False, True, True]])}
    shared = Layout(layout.segments, valid=valid, documents=documents)
    copied = Layout(layout.segments, valid=valid, documents=documents.expand(2, -1))
    assert torch.equal(shared.dense(), copied.dense())


def test_the_mask_is_built_where_validity_lives_unless_told_otherwise(layout: Layout, device: torch.device) -> None:
    valid = {"und": torch.ones(1, 4, dtype=torch.bool, device=device)}
    ragged = layout.with_valid(valid)
    assert ragged.dense().device.type == device.type
    assert ragged.block_mask().kv_indices.device.type == device.type
    assert ragged.dense(device="cpu").device.type == "cpu"
    assert layout.bias(torch.float32, device=device).device.type == device.type


def test_a_mask_has_the_layouts_batch_even_where_nothing_is_ragged(layout: Layout) -> None:
    ragged = layout.with_valid({"und": torch.ones(3, 4, dtype=torch.bool)})
    assert ragged.dense(layout.span("text"), layout.span("text")).shape == (3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_bias_is_zero_or_seven_tenths_of_the_lowest_number_in_any_floating_type(
    layout: Layout, device: torch.device, dtype: torch.dtype
) -> None:
    bias = layout.bias(dtype, device=device)
    assert bias.dtype == dtype
    assert torch.equal(bias[:, 0] == 0, layout.dense(device=device))
    assert (bias[:, 0][~layout.dense(device=device)] == torch.tensor(0.7 * torch.finfo(dtype).min, dtype=dtype)).all()


def test_the_bias_in_float32_is_that_of_openpi(layout: Layout) -> None:
    assert layout.bias(torch.float32).min() == torch.tensor(-2.3819763e38)


def test_a_layout_prints_as_a_table_of_segments(layout: Layout) -> None:
    assert str(layout).splitlines() == [
        "3 segments, 9 positions; rows are queries, columns are keys",
        "           0 1 2",
        "0 und    4 # . .",
        "1 text   2 # \\ .",
        "2 action 3 # # #",
    ]


def test_the_picture_says_what_is_per_sample(layout: Layout) -> None:
    valid = {"und": torch.ones(2, 4, dtype=torch.bool)}
    packed = Layout(layout.segments, valid=valid, documents=torch.zeros(2, 9, dtype=torch.int32))
    assert str(packed).endswith("\npadding in und neither sees nor is seen\ndocuments see only themselves")
    assert repr(packed).endswith(", valid=['und'], documents=(2, 9))")
    assert repr(layout) == f"Layout({list(layout.segments)})"


def test_a_picture_grows_with_segments_not_with_positions() -> None:
    lines = str(Layout([Segment(f"s{index}", 1000) for index in range(11)])).splitlines()
    assert len(lines) == 13
    assert lines[1].endswith("  8  9 10")
    assert lines[-1] == "10 s10 1000" + "  #" * 11


def test_block_starts_become_the_fewest_segments() -> None:
    starts = [1, 1, 0, 1, 1, 1, 0, 0, 1]
    shapes = [(segment.length, segment.causal) for segment in Layout.from_block_starts(starts).segments]
    assert shapes == [(1, False), (2, False), (2, True), (3, False), (1, False)]


def test_bad_segments_are_refused() -> None:
    with refused("length: expected at least 0 for segment 'und', got -3"):
        Segment("und", -3)
    with refused("segments: expected at least one position, got none in ['a', 'b']"):
        Layout([Segment("a", 0), Segment("b", 0, causal=True)])
    with refused("segments: expected at least one, with unique names, got []"):
        Layout([])
    with refused("segments: expected at least one, with unique names, got ['a', 'b', 'c', 'b', 'c']"):
        Layout([Segment(name, 1) for name in "abcbc"])


def test_unknown_names_and_reversed_spans_are_refused(layout: Layout) -> None:
    with refused("first: expected one of 'und', 'text', 'action', got 'gen'"):
        layout.span("gen")
    with refused("last: expected one of 'text', 'action', got 'gen'"):
        layout.span("text", "gen")
    with refused("last: expected one of 'text', 'action', got 'und'"):
        layout.span("text", "und")
    with refused("valid: expected names among 'und', 'text', 'action', got ['gen']"):
        layout.with_valid({"gen": torch.ones(1, 4, dtype=torch.bool)})


@pytest.mark.usefixtures("without_shape_checks")
def test_validity_and_documents_of_another_shape_or_type_are_refused(layout: Layout) -> None:
    """What the library says when no run-time shape checker stands before it."""
    for flags in (torch.ones(2, 3, dtype=torch.bool), torch.ones(4, dtype=torch.bool), torch.ones(2, 4)):
        got = f"got {flags.dtype} of shape {tuple(flags.shape)}"
        with refused(f"valid['und']: expected a boolean tensor of shape (batch, 4), {got}"):
            layout.with_valid({"und": flags})
    for documents in (torch.zeros(2, 8, dtype=torch.long), torch.zeros(9, dtype=torch.long)):
        with refused(f"documents: expected shape (batch, 9), got {tuple(documents.shape)}"):
            Layout(layout.segments, documents=documents)
    with refused("valid, documents, ranks: expected one batch size or 1, got [2, 3]"):
        Layout(
            layout.segments,
            valid={"und": torch.ones(2, 4, dtype=torch.bool)},
            documents=torch.zeros(3, 9, dtype=torch.long),
        )
    parts = "{'und': valid[:, 0:4], 'text': valid[:, 4:6], 'action': valid[:, 6:9]}"
    with refused(f"valid: expected a mapping from names of segments, such as {parts}, got a tensor"):
        layout.with_valid(torch.ones(1, 9, dtype=torch.bool))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("wrong", [range(10), range(-1, 3), range(0, 4, 2), range(3, 3), range(9, 12)])
def test_ranges_outside_the_layout_are_refused(layout: Layout, wrong: range) -> None:
    message = f"expected a non-empty range of step 1 within range(0, 9), got {wrong}"
    for render in (layout.dense, layout.block_mask, lambda *held: layout.bias(torch.float32, *held)):
        with refused(f"queries: {message}"):
            render(wrong, None)
        with refused(f"keys: {message}"):
            render(None, wrong)
    with refused(f"span: {message}"):
        layout.validity(wrong)


def test_other_bad_input_is_refused(layout: Layout) -> None:
    with pytest.raises(TypeError, match="floating"):  # PyTorch's own: an integer type has no lowest float
        layout.bias(torch.int32)
    with refused("starts: expected 0 and 1, at least one of them, got [0, 1, 2, 3]"):
        Layout.from_block_starts([0, 3, 1, 2])
    with refused("starts: expected 0 and 1, at least one of them, got []"):
        Layout.from_block_starts([])

    with refused("starts: expected shape (seq,) or (batch, seq), got (1, 1, 2)"):
        Layout.from_block_starts(torch.zeros(1, 1, 2, dtype=torch.bool))
    with refused("starts: expected 0 and 1, at least one of them, got [0, 2]"):
        Layout.from_block_starts([[0, 0], [0, 2]])


def test_block_starts_may_come_as_a_tensor() -> None:
    starts = [1, 0, 0, 1, 1, 0]
    for tensor in (torch.tensor(starts), torch.tensor(starts).bool()):
        assert Layout.from_block_starts(tensor) == Layout.from_block_starts(starts)
