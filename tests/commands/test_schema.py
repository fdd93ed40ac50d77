"""`moteur schema`: a first schema on standard output or in a file, remarks on standard error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml
from typer.testing import Result

from moteur.data import Robot


def test_the_schema_is_all_of_standard_output_and_the_slots_are_on_standard_error(
    home: Path, moteur: Callable[..., Result]
) -> None:
    found = moteur("schema", "sets/cup")
    assert Robot.from_dict(yaml.safe_load(found.stdout)) == Robot.from_info(home / "sets" / "cup")
    assert found.stderr.splitlines()[:4] == [
        "Cameras, as released weights expect them:",
        "  view 0, head or front: observation.images.front",
        "  view 1, left or only wrist: observation.images.wrist",
        "  view 2, right wrist: none",
    ]
    assert "relative: all 3 action dimensions (shoulder, elbow, gripper) are taken as absolute" in found.stderr


def test_options_choose_name_columns_and_slots(home: Path, moteur: Callable[..., Result]) -> None:
    cameras = ("--camera", "none", "--camera", "observation.images.wrist", "--camera", "none")
    state = ("--state", "action", "--state", "observation.state")
    found = moteur("schema", "sets/cup", "--out", "mine.yaml", "--name", "mine", *state, *cameras)
    assert found.stdout == ""
    assert found.stderr.startswith("wrote mine.yaml\n")
    assert "  not used: observation.images.front\n" in found.stderr
    assert Robot.load("mine.yaml") == Robot.from_info(
        home / "sets" / "cup",
        "mine",
        state=("action", "observation.state"),
        cameras=(None, "observation.images.wrist", None),
    )


def test_parts_of_columns_come_from_modality_json(home: Path, moteur: Callable[..., Result]) -> None:
    root = home / "parts"
    shutil.copytree(home / "sets" / "cup", root)
    parts = {"gripper": {"start": 2, "end": 3}, "arm": {"start": 0, "end": 2}}
    modality = {"state": parts, "action": parts, "video": {"front": {}, "wrist": {}}}
    (root / "meta" / "modality.json").write_text(json.dumps(modality))
    robot = Robot.from_dict(yaml.safe_load(moteur("schema", root).stdout))
    assert robot == Robot.from_modality(root)
    assert [(part.start, part.size) for part in robot.state] == [(2, 1), (0, 2)]


def test_an_existing_file_is_replaced_only_by_force(home: Path, moteur: Callable[..., Result]) -> None:
    (home / "mine.yaml").write_text("kept")
    refused = moteur("schema", "sets/cup", "--out", "mine.yaml")
    message = "error: --out: expected the name of a new file, got mine.yaml, which exists; --force replaces it\n"
    assert (refused.exit_code, refused.stderr) == (2, message)
    assert (home / "mine.yaml").read_text() == "kept"
    assert moteur("schema", "sets/cup", "--out", "mine.yaml", "--force").exit_code == 0
    assert Robot.load("mine.yaml").name == "toy"


def test_a_set_or_column_that_is_not_there_is_refused(home: Path, moteur: Callable[..., Result]) -> None:
    assert "so nowhere is not a LeRobot set" in moteur("schema", "nowhere").stderr
    message = "error: state: expected columns out of ['observation.state', 'action'], or () for none, got ['joints']\n"
    assert moteur("schema", "sets/cup", "--state", "joints").stderr == message
    assert "expected a file in an existing folder" in moteur("schema", "sets/cup", "--out", "no/mine.yaml").stderr
    assert "ends in .json, .yaml or .yml" in moteur("schema", "sets/cup", "--out", "mine.txt").stderr
    assert not (home / "mine.txt").exists()
