"""Full size, on the meta device: every released key is accounted for before a byte is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moteur.recipes import InternVLAA1, preset
from moteur.recipes.backbones.towers import qwen3_vl_tower
from moteur.recipes.checkpoints.files import Stored
from moteur.recipes.checkpoints.layouts import released_layout, without_decoder
from moteur.recipes.checkpoints.matching import chosen_dtypes, match
from moteur.recipes.checkpoints.meta import WeightlessMode, build_weightless
from moteur.recipes.config import Qwen3VLVision, Variant

COUNTS = {"3B": (1443, 1, 18), "2B": (1456, 0, 3)}


def stored_shapes(golden: Path, variant: Variant) -> dict[str, Stored]:
    shapes = json.loads((golden / f"released_shapes_{variant.lower()}.json").read_text())
    nowhere = golden / "README.md"
    return {name: Stored(nowhere, name, torch.bfloat16, tuple(shape), 0, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_every_released_key_is_loaded_tied_or_unused_at_its_shape(golden: Path, variant: Variant) -> None:
    model = build_weightless(InternVLAA1, preset(variant), decoder=True)
    wanted, report = match("file", stored_shapes(golden, variant), model, released_layout(variant))
    assert (len(report.loaded), len(report.tied), len(report.unused)) == COUNTS[variant]
    assert report.exact
    assert set(wanted) == set(model.state_dict())
    dtypes = chosen_dtypes(wanted, None, as_saved=False)
    layers = preset(variant).depth
    assert sum(dtype == torch.float32 for dtype in dtypes.values()) == 3 * 2 * layers + 1 + 2  # norms, und's, read-out


@pytest.mark.parametrize("variant", ["3B", "2B"])
def test_without_the_decoder_its_tensors_are_left_out_on_purpose(golden: Path, variant: Variant) -> None:
    model = build_weightless(InternVLAA1, preset(variant), decoder=False)
    layout = without_decoder(released_layout(variant), preset(variant), model.state_dict())
    _, report = match("file", stored_shapes(golden, variant), model, layout)
    assert report.exact
    decoder = [name for name, reason in report.unused if reason == "Cosmos decoder, not asked for"]
    assert len(decoder) + len(report.loaded) == COUNTS[variant][0]
    assert decoder


def test_constants_that_no_file_holds_are_computed_while_weights_take_no_memory() -> None:
    vision = replace(preset("3B").vision, depth=1, deepstack=(0,))
    assert isinstance(vision, Qwen3VLVision)
    before = torch.get_rng_state()
    with WeightlessMode():
        light = qwen3_vl_tower(vision, dim=2048)
    assert torch.equal(torch.get_rng_state(), before)
    real = qwen3_vl_tower(vision, dim=2048)
    assert all(parameter.is_meta for parameter in light.parameters())
    buffers = dict(light.named_buffers())
    assert buffers.keys() == dict(real.named_buffers()).keys() != set()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in real.named_buffers())
