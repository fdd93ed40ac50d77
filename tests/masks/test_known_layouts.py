"""Layouts of published models against masks written out by hand: rows are queries, 1 means may attend."""

import torch

from moteur.masks import Layout, Segment


def table(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row.replace(" ", "")] for row in rows])


def test_internvla_a1_has_four_blocks_of_which_each_sees_all_before(device: torch.device) -> None:
    layout = Layout([Segment("und", 3), Segment("gen", 2), Segment("state", 1), Segment("action", 2)])
    expected = table(
        "111 00 0 00",
        "111 00 0 00",
        "111 00 0 00",
        "111 11 0 00",
        "111 11 0 00",
        "111 11 1 00",
        "111 11 1 11",
        "111 11 1 11",
    )
    assert torch.equal(layout.dense(device=device)[0].cpu(), expected)


def test_internvla_a1_with_a_short_instruction_and_a_missing_camera(device: torch.device) -> None:
    """Three views of one token each and three text tokens in `und`; one `gen` token a view."""
    und = torch.tensor([[1, 1, 0, 1, 1, 0]], dtype=torch.bool, device=device)
    gen = torch.tensor([[1, 1, 0]], dtype=torch.bool, device=device)
    segments = [Segment("und", 6), Segment("gen", 3), Segment("state", 1), Segment("action", 1)]
    expected = table(
        "110110 000 0 0",
        "110110 000 0 0",
        "000000 000 0 0",
        "110110 000 0 0",
        "110110 000 0 0",
        "000000 000 0 0",
        "110110 110 0 0",
        "110110 110 0 0",
        "000000 000 0 0",
        "110110 110 1 0",
        "110110 110 1 1",
    )
    assert torch.equal(Layout(segments, valid={"und": und, "gen": gen}).dense()[0].cpu(), expected)


def test_pi0_has_three_blocks_by_name_and_by_block_starts(device: torch.device) -> None:
    named = Layout([Segment("images and text", 3), Segment("state", 1), Segment("actions", 3)])
    started = Layout.from_block_starts([0, 0, 0, 1, 1, 0, 0])
    expected = table(
        "111 0 000",
        "111 0 000",
        "111 0 000",
        "111 1 000",
        "111 1 111",
        "111 1 111",
        "111 1 111",
    )
    assert torch.equal(named.dense(device=device)[0].cpu(), expected)
    assert torch.equal(started.dense(device=device)[0].cpu(), expected)


def test_a_prefix_language_model_by_name_and_by_block_starts(device: torch.device) -> None:
    named = Layout([Segment("prefix", 2), Segment("text", 3, causal=True)])
    started = Layout.from_block_starts([0, 0, 1, 1, 1])
    expected = table(
        "11 000",
        "11 000",
        "11 100",
        "11 110",
        "11 111",
    )
    assert torch.equal(named.dense(device=device)[0].cpu(), expected)
    assert torch.equal(started.dense(device=device)[0].cpu(), expected)
    assert [(segment.length, segment.causal) for segment in started.segments] == [(2, False), (3, True)]


def test_a_causal_language_model_by_name_and_by_block_starts(device: torch.device) -> None:
    expected = table(
        "1000",
        "1100",
        "1110",
        "1111",
    )
    for layout in (Layout([Segment("text", 4, causal=True)]), Layout.from_block_starts([1, 1, 1, 1])):
        assert torch.equal(layout.dense(device=device)[0].cpu(), expected)


def test_text_and_images_in_turn_are_causal_with_images_seen_whole(device: torch.device) -> None:
    layout = Layout(
        [
            Segment("caption", 2, causal=True),
            Segment("image", 2),
            Segment("question", 2, causal=True),
            Segment("drawing", 3),
        ]
    )
    expected = table(
        "10 00 00 000",
        "11 00 00 000",
        "11 11 00 000",
        "11 11 00 000",
        "11 11 10 000",
        "11 11 11 000",
        "11 11 11 111",
        "11 11 11 111",
        "11 11 11 111",
    )
    assert torch.equal(layout.dense(device=device)[0].cpu(), expected)


def test_packed_documents_each_follow_the_rule_on_their_own(device: torch.device) -> None:
    """Two episodes share each segment: the prefix holds one token of the first and two of the second."""
    documents = torch.tensor([[0, 1, 1, 0, 1]], device=device)
    layout = Layout([Segment("prefix", 3), Segment("actions", 2, causal=True)], documents=documents)
    expected = table(
        "100 00",
        "011 00",
        "011 00",
        "100 10",
        "011 01",
    )
    assert torch.equal(layout.dense()[0].cpu(), expected)


def test_blocks_are_full_where_all_is_certain_and_partial_where_only_something_is_seen(device: torch.device) -> None:
    """Blocks of two: documents 0, then 1 with padding, then 0, then both."""
    layout = Layout(
        [Segment("prefix", 4), Segment("actions", 4)],
        valid={"prefix": torch.tensor([[True, True, True, False]], device=device)},
        documents=torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1]], device=device),
    )
    mask = layout.block_mask(block_size=2)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    full = [
        row[:count]
        for row, count in zip(mask.full_kv_indices[0, 0].tolist(), mask.full_kv_num_blocks[0, 0], strict=True)
    ]
    partial = [row[:count] for row, count in zip(mask.kv_indices[0, 0].tolist(), mask.kv_num_blocks[0, 0], strict=True)]
    assert full == [[0], [], [0, 2], []]
    assert partial == [[], [1], [3], [0, 1, 2, 3]]
