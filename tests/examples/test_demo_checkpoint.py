"""The checkpoint that the demo starts from: small, complete, and made as its record says."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from checkpoint import JOB, LIMIT
from pipeline import RECORD, SHIPPED
from robot import load
from safetensors import safe_open

FOUND = json.loads(RECORD.read_text())


def test_it_takes_no_more_than_ten_mebibytes_and_is_the_file_of_the_record() -> None:
    assert SHIPPED.stat().st_size <= LIMIT == 10 * 2**20
    assert SHIPPED.stat().st_size == FOUND["bytes"]


def test_it_fits_the_model_strictly_and_every_weight_is_finite() -> None:
    policy = load(SHIPPED)
    for name, value in policy.model.state_dict().items():
        assert torch.isfinite(value).all(), name
    for field in (policy.statistics.state, policy.statistics.action):
        assert field is not None
        assert torch.isfinite(torch.tensor([*field.mean, *field.std])).all()
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == FOUND["parameters"]


def test_its_record_names_the_job_that_the_target_runs() -> None:
    with safe_open(SHIPPED, "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert FOUND["command"] == "make checkpoint"
    assert notes["job"] == FOUND["job"] == json.loads(json.dumps(asdict(JOB)))


def test_its_record_meets_the_bar_that_the_demo_is_held_to() -> None:
    assert FOUND["checkpoint"]["success"]["low"] > FOUND["untrained"]["success"]["high"]
    assert FOUND["checkpoint"]["foresight"]["pixels"]["ratio"] <= 0.7
    for name in ("tokenizer", "action", "foresight"):
        curve = FOUND[f"{name}_loss_per_100_steps"]
        assert curve[-1] < 0.5 * curve[0], name
