"""The files that loading is measured on are files that load, and one measurement leaves the others in the result."""

import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the benchmarks are no package

from loading import update
from loading_files import write_backbone, write_cosmos
from loading_parts import convert, start

from moteur.recipes import preset
from moteur.tokenizers import CosmosDecoder


def test_a_random_backbone_is_one_that_a_model_starts_from_in_half_precision(tmp_path: Path) -> None:
    config = preset("tiny")
    write_backbone(tmp_path, config)
    write_cosmos(tmp_path / "cosmos", config, torchscript=False)
    taken = start(tmp_path, "tiny")
    assert 2 < taken["held_bytes"] / 3.1e6 < 2.1  # bytes of a parameter; some norms are held in float32
    assert taken["peak_resident_bytes"] > taken["held_bytes"]


def test_a_random_tokenizer_is_one_that_is_converted(tmp_path: Path) -> None:
    config = preset("tiny")
    encoder, decoder = write_cosmos(tmp_path, config, torchscript=True)
    assert (encoder.name, decoder.name) == ("encoder.jit", "decoder.jit")
    model = CosmosDecoder(config.cosmos, dtype=torch.bfloat16)
    held = convert(tmp_path)["held_bytes"]
    assert held > 2 * sum(parameter.numel() for parameter in model.parameters())


def test_a_part_of_the_result_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "loading.json"
    for part in ({"repeats": 3, "backbone": 1}, {"convert": 2}, {"backbone": 4}):
        update(path, part)
    assert json.loads(path.read_text()) == {"repeats": 3, "backbone": 4, "convert": 2}
