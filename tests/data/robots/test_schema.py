"""Schemas: what they refuse, their files, and the built-in robots."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moteur.data import ROBOTS, Feature, Robot, Source, find_robot, robot_from_modality
from moteur.data.lerobot.info import Info, Modality, Slice, read_info


def info(features: dict[str, Feature], robot_type: str | None = "toy", fps: int = 10) -> Info:
    return Info("v3.0", robot_type, fps, 1, 1, 1000, "", None, features)


def described(robot: Robot) -> dict[str, Feature]:
    sources = {source.key: Feature("float32", (source.size,)) for source in (*robot.state, *robot.action)}
    return sources | {camera: Feature("video", (224, 224, 3)) for camera in robot.cameras if camera}


# REFERENCE: six joints and a gripper twice, fourteen joints and two grippers, seven joints and a gripper, seven joints.
ARMS = {"franka": "7r1a", "genie1": "14r2a", "a2d": "14r2a", "panda": "7r"} | dict.fromkeys(
    ("lift2", "split_aloha", "ac_one", "aloha"), "6r1a6r1a"
)


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_a_built_in_robot_is_relative_on_arms_and_absolute_on_grippers(name: str) -> None:
    robot, expected, count = ROBOTS[name], [], ""
    for letter in ARMS[name]:
        if letter.isdigit():
            count += letter
        else:
            expected += [letter == "r"] * int(count)
            count = ""
    assert list(robot.relative_mask) == expected
    assert robot.state_dim == robot.action_dim == len(expected)
    assert len(robot.cameras) == 3
    robot.check(info(described(robot), robot.robot_types[0]))
    assert Robot.from_dict(robot.to_dict()) == robot


@pytest.mark.parametrize(
    ("robot_type", "name"),
    [("Franka", "franka"), ("ARX Lift-2", "lift2"), ("piper", "split_aloha"), ("Genie-1", "genie1"), ("a2d", "a2d")],
)
def test_the_name_in_info_finds_the_robot(robot_type: str, name: str) -> None:
    assert find_robot(robot_type) is ROBOTS[name]


@pytest.mark.parametrize("robot_type", [None, "spot"])
def test_an_unknown_robot_has_no_default(robot_type: str | None) -> None:
    with pytest.raises(
        ValueError, match=rf"robot_type {robot_type!r} has no built-in schema; known are .*'AgileX Split Aloha'"
    ):
        find_robot(robot_type)


def test_the_golden_set_fits_the_aloha_schema(golden: Path) -> None:
    found = read_info(golden / "lerobot_v30/dataset")
    find_robot(found.robot_type).check(found)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_schema_survives_its_file(robot: Robot, tmp_path: Path, suffix: str) -> None:
    full = replace(robot, joints=("shoulder", "elbow", "gripper"))
    path = tmp_path / f"robot{suffix}"
    full.save(path)
    assert Robot.load(path) == full


def test_a_schema_written_by_hand_is_a_dozen_lines(robot: Robot, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(
        """
name: toy
state: [{key: joints, size: 2}, {key: gripper, size: 1}]
action: [{key: joints_target, size: 2}, {key: gripper_target, size: 1}]
cameras: [head, null, wrist]
relative: [2, -1]
robot_types: [toy]
rate: 10
"""
    )
    assert Robot.load(path) == robot


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "toy.yaml: not a robot schema: expected a mapping, got list"),
        ("a: [", "toy.yaml: while parsing"),
        ("{name: toy, cameras: [head], colour: red}", "toy.yaml: not a robot schema: .*unexpected keyword .*'colour'"),
        ("{cameras: [head]}", "toy.yaml: not a robot schema: .*missing .*'name'"),
        ("{name: toy, cameras: [head], state: [{key: a}]}", "toy.yaml: not a robot schema: .*'size'"),
        ("{name: toy, cameras: front}", "toy.yaml: not a robot schema: cameras must be a list, got 'front'"),
        (
            "{name: toy, cameras: [a], joints: elbow}",
            "toy.yaml: not a robot schema: joints must be a list, got 'elbow'",
        ),
        ("{name: toy}", "toy.yaml: not a robot schema: .*missing .*'cameras'"),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "toy.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        Robot.load(tmp_path / "toy.yaml")


def test_another_suffix_is_refused(robot: Robot, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .json, .yaml or .yml, got 'toy.toml'"):
        robot.save(tmp_path / "toy.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative": (2, -2)}, r"relative of 'toy': runs \(2, -2\) must cover 3 dimensions"),
        ({"state": (Source("joints", 1),)}, r"relative of 'toy': a relative dimension lies past the 1 of the state"),
        ({"cameras": (None, None, None)}, r"cameras of 'toy': at least one view is needed"),
        ({"joints": ("a",)}, r"joints of 'toy': expected 3 names, got 1"),
        ({"state": (Source("joints", 0), Source("gripper", 3))}, r"state of 'toy': joints needs size > 0"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(robot: Robot, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(robot, **changes)


@pytest.mark.parametrize(
    ("key", "feature", "message"),
    [
        ("joints", None, "features has no numeric column 'joints' for the state"),
        ("joints", Feature("string", (1,)), "features has no numeric column 'joints' for the state"),
        ("joints_target", Feature("float32", (3,)), r"features\['joints_target'\].shape is \(3,\), expected \(2,\)"),
        ("joints", Feature("float32", (2, 1)), r"features\['joints'\].shape is \(2, 1\), expected \(2,\)"),
        ("wrist", None, r"features has no camera 'wrist', only \['head'\]"),
        ("wrist", Feature("float32", (2,)), r"features has no camera 'wrist', only \['head'\]"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(robot: Robot, key: str, feature: Feature | None, message: str) -> None:
    features = described(robot) | {key: feature}
    with pytest.raises(ValueError, match=message):
        robot.check(info({name: entry for name, entry in features.items() if entry is not None}))


def test_every_mismatch_is_told_at_once(robot: Robot) -> None:
    with pytest.raises(ValueError, match=r"(?s)'joints'.*'wrist'.*robot_type is 'spot'.*fps is 30, expected 10"):
        robot.check(info({"head": Feature("video", (8, 8, 3))}, "spot", 30))


def test_joint_names_are_compared_where_the_set_has_some(robot: Robot) -> None:
    named = replace(robot, joints=("shoulder", "elbow", "gripper"))
    features = described(robot)
    named.check(info(features))
    features["joints_target"] = Feature("float32", (2,), {"motors": ["shoulder", "elbow"]})
    features["gripper_target"] = Feature("float32", (1,), ["gripper"])
    named.check(info(features))
    features["joints_target"] = Feature("float32", (2,), ["elbow", "shoulder"])
    with pytest.raises(ValueError, match=r"names of the action are \('elbow', 'shoulder', 'gripper'\), expected"):
        named.check(info(features))


def test_modality_makes_a_schema() -> None:
    modality = Modality(
        state={"arm": Slice("observation.state", 0, 6), "gripper": Slice("observation.state", 6, 7)},
        action={"gripper": Slice("action", 6, 7), "arm": Slice("action", 0, 6)},
        video={"ego": "observation.images.top"},
    )
    features = {
        "observation.state": Feature("float32", (9,)),
        "action": Feature("float32", (7,)),
        "observation.images.top": Feature("video", (8, 8, 3)),
    }
    robot = robot_from_modality("groot", modality, info(features), cameras=(None, "ego", None), relative=(-7,))
    assert robot.cameras == (None, "observation.images.top", None)
    assert [(source.key, source.start, source.size) for source in robot.action] == [("action", 6, 1), ("action", 0, 6)]
    robot.check(info(features))
    with pytest.raises(ValueError, match=r"cameras \['wrist'\] are not in modality.json, which has \['ego'\]"):
        robot_from_modality("groot", modality, info(features), cameras=("wrist",))
