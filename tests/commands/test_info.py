"""`moteur info`: each kind of folder and file, from headers alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from toy_checkpoints import released_config, released_tensors, write_tensors
from toy_model import randomised, toy_config_2b
from typer.testing import Result

from moteur.data import Robot, RobotStatistics


def test_a_set_shows_robot_rate_sizes_cameras_and_named_columns(home: Path, moteur: Callable[..., Result]) -> None:
    lines = moteur("info", home / "sets" / "cup").stdout.splitlines()
    assert lines[0] == f"LeRobot set v3.0: {home / 'sets' / 'cup'}"
    assert [line.split() for line in lines[1:]] == [
        ["robot", "type", "toy"],
        ["frame", "rate", "30", "Hz"],
        ["episodes", "3"],
        ["frames", "30", "(0:00:01)"],
        ["cameras"],
        ["observation.images.front", "32", "×", "24", "video"],
        ["observation.images.wrist", "32", "×", "32", "video"],
        ["columns"],
        ["observation.state", "float32", "3", "shoulder,", "elbow,", "gripper"],
        ["action", "float32", "3", "shoulder,", "elbow,", "gripper"],
        ["timestamp", "float32", "1"],
        *([name, "int64", "1"] for name in ("frame_index", "episode_index", "index", "task_index")),
    ]


def test_only_info_json_of_a_set_is_needed(home: Path, moteur: Callable[..., Result], tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "meta"
    bare.mkdir(parents=True)
    (bare / "info.json").write_text((home / "sets" / "cup" / "meta" / "info.json").read_text())
    assert moteur("info", bare.parent).stdout.splitlines()[1:] == moteur("info", "sets/cup").stdout.splitlines()[1:]


def test_a_checkpoint_shows_its_sizes_robots_and_tokenizers(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("info", "checkpoint").stdout
    with safe_open(home / "checkpoint" / "model.safetensors", framework="pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # not a dictionary
    facts = dict(line.split("  ", maxsplit=1) for line in found.splitlines() if "  " in line.strip())
    facts = {name: value.strip() for name, value in facts.items()}
    assert found.startswith("InternVLA-A1 checkpoint, 3B variant: checkpoint\n")
    assert facts["parameters"] == f"{count:,} in {4 * count / 1000:.1f} kB"
    assert facts["number format"] == f"float32 ({count:,})"
    assert facts["actions"] == "4 steps of at most 5 dimensions"
    assert (facts["Cosmos encoder"], facts["Cosmos decoder"], facts["text tokenizer"]) == ("yes", "no", "yes")
    assert "  toy  state 3, action 3, cameras observation.images.front, observation.images.wrist, none\n" in found


def test_a_released_checkpoint_is_told_from_its_tensors(tmp_path: Path, moteur: Callable[..., Result]) -> None:
    model = randomised(toy_config_2b(), decoder=True)
    write_tensors(tmp_path, released_tensors(model), shards=2)
    (tmp_path / "config.json").write_text(json.dumps(released_config(model.config)))
    (tmp_path / "stats.json").write_text(json.dumps({"mine": {}}))
    found = moteur("info", tmp_path).stdout
    assert found.startswith(f"InternVLA-A1 checkpoint, 2B variant: {tmp_path}\n")
    assert "layout          released\n" in found
    assert "Cosmos decoder  yes\n" in found
    assert "text tokenizer  no; released weights use OpenGVLab/InternVL3-1B-hf\n" in found
    assert "  mine  unusable: statistics of 'mine': " in found


def test_a_schema_shows_which_camera_is_in_which_slot(home: Path, moteur: Callable[..., Result]) -> None:
    Robot.load(home / "robot.yaml").save(home / "robot.json")
    found = moteur("info", "robot.yaml").stdout
    assert found == moteur("info", "robot.json").stdout
    assert "2 relative, 1 absolute\n" in found
    assert "  view 1  observation.images.wrist\n  view 2  none\n" in found
    assert "robot schema: aloha\n" in moteur("info", "aloha").stdout


def test_statistics_show_mean_spread_and_range(home: Path, moteur: Callable[..., Result]) -> None:
    found = RobotStatistics.load(home / "saved.json").state
    row = [f"{values[0]:.4g}" for values in (found.mean, found.std, found.min, found.max)]
    assert ["observation.state[0]", *row] in [line.split() for line in moteur("info", "saved.json").stdout.splitlines()]


def test_the_cosmos_tokenizer_shows_its_files(home: Path, moteur: Callable[..., Result]) -> None:
    assert moteur("info", home / "cosmos").stdout.startswith(f"Cosmos tokenizer: {home / 'cosmos'}\nencoder.jit  ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "nowhere",
            None,
            "error: source: expected a folder, a file or a robot such as aloha, got 'nowhere'; there is",
        ),
        ("x.json", "{", "error: x.json: expected JSON, got other text"),
        ("x.yaml", "states: []", "error: x.yaml: states: unknown field, did you mean 'state'?"),
        ("x.txt", "", "error: source: expected a set (meta/info.json), a checkpoint"),
        ("x.safetensors", "", "error: source: expected a set (meta/info.json), a checkpoint"),
    ],
)
def test_what_it_does_not_know_is_refused(
    name: str, content: str | None, message: str, home: Path, moteur: Callable[..., Result]
) -> None:
    if content is not None:
        (home / name).write_text(content)
    found = moteur("info", name)
    assert found.exit_code == 2
    assert found.stderr.startswith(message)
    assert found.stderr.count("\n") == 1
