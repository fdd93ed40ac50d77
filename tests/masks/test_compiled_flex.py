"""FlexAttention as it is meant to be used: compiled by the default compiler."""

import shutil

import pytest
import torch

from moteur.masks import Layout, Segment, dense_attention, flex_attention

pytestmark = [
    pytest.mark.usefixtures("without_shape_checks", "fresh_compiler"),
    # Importing the default compiler makes torch warn about its own use of torch.jit.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]


def test_compiled_flex_attention_equals_dense_in_the_joint_call_and_over_cached_keys(device: torch.device) -> None:
    """Blocks that are full, partial and empty; padding, a sample that is nothing but padding, and documents."""
    if device.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("the default compiler needs a C++ compiler on the CPU")
    segments = [Segment("und", 150), Segment("gen", 60), Segment("text", 40, causal=True), Segment("action", 6)]
    length = sum(segment.length for segment in segments)
    draw = torch.Generator().manual_seed(0)
    valid = torch.rand(3, 150, generator=draw) < 0.7
    valid[2] = False
    documents = (torch.arange(length).expand(3, -1) % 3 == 0).long() * torch.tensor([[0], [1], [1]])
    layout = Layout(segments, valid={"und": valid.to(device)}, documents=documents.to(device))
    query = torch.randn(3, 4, length, 16, generator=draw).to(device)
    key, value = (torch.randn(3, 2, length, 16, generator=draw).to(device) for _ in range(2))
    # With symbolic lengths, torch 2.13 writes C++ for the second call that does not compile.
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    for rows in (range(length), layout.span("action")):
        mask = layout.block_mask(rows, device=device)
        with torch.no_grad():
            actual = compiled(query[:, :, rows.start :], key, value, layout, block_mask=mask)
            expected = dense_attention(query[:, :, rows.start :].double(), key.double(), value.double(), layout)
        # An average of numbers up to 5 with weights that sum to one, each of them rounded a few times.
        assert (actual - expected).abs().max() <= 5 * 16 * torch.finfo(torch.float32).eps
        assert not actual[2, :, : 150 - rows.start].any()  # padding only
