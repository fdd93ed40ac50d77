"""The checkpoint that the demo starts from: small, complete, and made as its record says."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import digests
from checkpoint import JOB, LIMIT
from env import COLORS, INSTRUCTIONS
from pipeline import RECORD, SHIPPED, load
from robot import ROBOT, config, text_tokenizer, transform
from safetensors import safe_open

from moteur.recipes import load_tokenizer

FOUND = json.loads(RECORD.read_text())


def test_it_takes_no_more_than_ten_mebibytes_and_holds_the_weights_of_the_record() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= LIMIT == 10 * 2**20
    weights = SHIPPED / "model.safetensors"
    assert (digests.of_path(weights), weights.stat().st_size) == (FOUND["weights"], FOUND["bytes"])


def test_it_fits_the_model_strictly_and_every_weight_is_finite_and_stored_in_half_precision() -> None:
    with safe_open(SHIPPED / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 - not a mapping
    model = load(SHIPPED)
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name
    assert sum(parameter.numel() for parameter in model.parameters()) == FOUND["parameters"]
    assert model.config == config()


def test_it_brings_the_robot_that_the_demo_records_and_the_words_that_the_demo_says() -> None:
    robot = transform(load(SHIPPED))
    assert robot.robot == ROBOT
    assert robot.statistics.chunk == config().chunk
    stored, made = load_tokenizer(SHIPPED), text_tokenizer()
    texts = [text.format(color) for text in INSTRUCTIONS for color in COLORS]
    ids = stored(texts, add_special_tokens=False)["input_ids"]
    assert ids == made(texts, add_special_tokens=False)["input_ids"]
    assert stored.unk_token_id == made.unk_token_id not in {token for text in ids for token in text}
    assert max(made.get_vocab().values()) < config().vocabulary


def test_its_record_names_the_job_that_the_target_runs() -> None:
    assert FOUND["command"] == "make checkpoint"
    assert FOUND["job"] == json.loads(json.dumps(asdict(JOB)))


def test_its_record_meets_the_bar_that_the_demo_is_held_to() -> None:
    assert FOUND["checkpoint"]["success"]["low"] > FOUND["untrained"]["success"]["high"]
    assert FOUND["checkpoint"]["foresight"]["pixels"]["ratio"] <= 0.7
    for name in ("tokenizer", "action", "foresight"):
        curve = FOUND[f"{name}_loss_per_100_steps"]
        assert curve[-1] < 0.5 * curve[0], name
