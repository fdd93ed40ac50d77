"""The vision towers are `transformers`' own, with every constant ours."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_model import toy_config
from transformers import Qwen3VLVisionModel

from moteur.recipes.backbones.towers import merged_tokens, qwen3_vl_tower
from moteur.recipes.config import Qwen3VLVision

GRID = torch.tensor([[1, 4, 4], [1, 4, 6]])


@pytest.fixture
def sizes() -> Qwen3VLVision:
    return replace(toy_config().vision, dim=64, heads=2, depth=2)


def patches(sizes: Qwen3VLVision) -> torch.Tensor:
    values = 3 * sizes.patch_frames * sizes.patch**2
    return torch.randn(40, values, generator=torch.Generator().manual_seed(0))


def shaken(tower: nn.Module) -> nn.Module:
    """Weights large enough for attention, and with it the rotary angles, to matter."""
    torch.manual_seed(1)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tower.eval()


def test_the_rotary_base_is_ours_whatever_the_installed_version_has_as_its_default(sizes: Qwen3VLVision) -> None:
    towers = [shaken(qwen3_vl_tower(replace(sizes, rope_base=base), dim=24)) for base in (10_000.0, 500.0)]
    spread = 16  # half of a head: the other half follows the columns
    for tower, base in zip(towers, (10_000.0, 500.0), strict=True):
        expected = torch.tensor([base ** (-2 * index / spread) for index in range(spread // 2)])
        torch.testing.assert_close(tower.rotary_pos_emb.inv_freq, expected, rtol=1e-6, atol=0)
    with torch.no_grad():
        usual, other = (merged_tokens(tower, patches(sizes), GRID) for tower in towers)
    assert usual.shape == (10, 24)
    assert not torch.allclose(usual, other, rtol=1e-3)


def test_at_the_published_base_it_is_the_tower_that_transformers_builds(sizes: Qwen3VLVision) -> None:
    ours = shaken(qwen3_vl_tower(sizes, dim=24))
    theirs = Qwen3VLVisionModel(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = merged_tokens(theirs, patches(sizes), GRID)
        assert torch.equal(merged_tokens(ours, patches(sizes), GRID), expected)


@pytest.mark.parametrize("form", ["tuple", "named"])
def test_the_merged_output_is_found_in_both_forms_that_versions_return(form: str) -> None:
    merged, taps = torch.ones(2, 3), [torch.zeros(2, 3)]

    class Tower(nn.Module):
        def forward(self, _: torch.Tensor, *, grid_thw: torch.Tensor) -> object:
            assert torch.equal(grid_thw, GRID)
            return (merged, taps) if form == "tuple" else SimpleNamespace(last_hidden_state=taps, pooler_output=merged)

    assert merged_tokens(Tower(), torch.zeros(40, 5), GRID) is merged
