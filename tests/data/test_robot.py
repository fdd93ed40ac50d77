"""Schemas: what they refuse, their files, and the built-in robots."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moteur.data import Feature, Info, LeRobotSet, LeRobotWriter, Robot, Source
from moteur.data.known_robots import ROBOTS
from moteur.data.lerobot.info import CHUNKS_SIZE, DATA_PATH, VIDEO_PATH


def info(features: dict[str, Feature], robot_type: str | None = "toy", fps: int = 10) -> Info:
    return Info("v3.0", robot_type, fps, 1, 1, CHUNKS_SIZE, DATA_PATH, VIDEO_PATH, features)


def described(robot: Robot) -> dict[str, Feature]:
    sources = {source.key: Feature("float32", (source.size,)) for source in (*robot.state, *robot.action)}
    return sources | {camera: Feature("video", (224, 224, 3)) for camera in robot.cameras if camera}


# REFERENCE: six joints and a gripper twice, fourteen joints and two grippers, seven joints and a gripper, seven joints.
ARMS = {"franka": "7r1a", "genie1": "14r2a", "a2d": "14r2a", "panda": "7r"} | dict.fromkeys(
    ("lift2", "split_aloha", "ac_one", "aloha"), "6r1a6r1a"
)


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_a_built_in_robot_is_relative_on_arms_and_absolute_on_grippers(robot: Robot) -> None:
    expected, count = [], ""
    for letter in ARMS[robot.name]:
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
    assert Robot.known(robot_type) is Robot.known(name)
    assert Robot.known(name).name == name


@pytest.mark.parametrize("robot_type", [None, "spot"])
def test_an_unknown_robot_has_no_default(robot_type: str | None) -> None:
    with pytest.raises(
        ValueError, match=rf"robot: expected .* 'AgileX Split Aloha',.*, got {robot_type!r}; Robot.from_info"
    ):
        Robot.known(robot_type)


def test_the_golden_set_fits_the_aloha_schema(golden: Path) -> None:
    found = Info.load(golden / "lerobot_v30/dataset")
    Robot.known(found.robot_type).check(found)


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


def test_an_old_file_without_the_newer_fields_still_loads(robot: Robot, tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(
        '{"name": "toy", "state": [{"key": "joints", "size": 2, "start": 0, "part": false}, {"key": "gripper", '
        '"size": 1}], "action": [], "cameras": ["head", null, "wrist"], "joints": null}'
    )
    old = replace(robot, action=(), relative=(), robot_types=(), rate=None)
    assert Robot.load(str(tmp_path / "toy.json")) == old
    watcher = Robot.from_dict({"name": "people", "cameras": ["head"]})
    assert (watcher.state, watcher.action) == ((), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "toy.yaml: expected a mapping of fields, got []"),
        ("a: [", "toy.yaml: expected YAML, got other text (while parsing"),
        ("name: " + "[" * 20_000, "toy.yaml: expected YAML, got other text (maximum recursion"),
        ("{name: toy, cameras: [head], colour: red}", "toy.yaml: colour: unknown field"),
        ("{name: toy, cameras: [head], states: []}", "toy.yaml: states: unknown field, did you mean 'state'?"),
        ("{name: toy, camera: [head]}", "toy.yaml: camera: unknown field, did you mean 'cameras'?"),
        (
            "{name: toy, cameras: [head], state: [{key: a, sise: 1}]}",
            "toy.yaml: state[0].sise: unknown field, did you mean 'size'?",
        ),
        ("{cameras: [head]}", "toy.yaml: name: expected a value, got none"),
        ("{name: toy, cameras: [head], state: [{key: a}]}", "toy.yaml: state[0].size: expected a value, got none"),
        (
            "{name: toy, cameras: [head], state: [{key: a, size: 0}]}",
            "toy.yaml: state[0].size: expected at least 1, got 0",
        ),
        ("{name: toy, cameras: [head], state: a}", "toy.yaml: state: expected a list, got 'a'"),
        ("{name: toy, cameras: [head], state: [a]}", "toy.yaml: state[0]: expected a mapping of fields, got 'a'"),
        ("{name: toy, cameras: front}", "toy.yaml: cameras: expected a list, got 'front'"),
        ("{name: toy, cameras: [3]}", "toy.yaml: cameras[0]: expected a string, got 3"),
        ("{name: toy, cameras: [a], joints: elbow}", "toy.yaml: joints: expected a list, got 'elbow'"),
        ("{name: toy, cameras: [a, a]}", "toy.yaml: cameras: expected at least one, each once (view 0 is the head or"),
        ("{name: toy}", "toy.yaml: cameras: expected a value, got none"),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "toy.yaml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        Robot.load(tmp_path / "toy.yaml")


def test_another_suffix_is_refused(robot: Robot, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .json, .yaml or .yml, got 'toy.toml'"):
        robot.save(tmp_path / "toy.toml")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative": (2, -2)}, r"relative: expected runs over the 3 action dimensions of 'toy', .*, got \(2, -2\)"),
        (
            {"state": (Source("joints", 1),)},
            r"relative: expected runs over the 3 .*, relative ones among the 1 of its state",
        ),
        ({"cameras": (None, None, None)}, r"cameras: expected at least one, each once .view 0 is .*, got \(None, None"),
        (
            {"cameras": ("head", "head")},
            r"cameras: .*view 1 the left or only wrist, view 2 the right wrist.*'head', 'he",
        ),
        ({"joints": ("a",)}, r"joints: expected 3 names of action dimensions, got \('a',\)"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(robot: Robot, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(robot, **changes)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": "head"}, "cameras: expected a list, got 'head'"),
        ({"cameras": None}, "cameras: expected a list, got None"),
        ({"cameras": {"head"}}, "values: expected values that JSON can hold, got others ('set' object cannot"),
        ({"cameras": (1,)}, "cameras[0]: expected a string, got 1"),
        ({"name": 5}, "name: expected a string, got 5"),
        ({"rate": "10"}, "rate: expected an integer, got '10'"),
        ({"relative": (2.0, -1)}, "relative[0]: expected an integer, got 2.0"),
        ({"relative": (True, -1)}, "relative[0]: expected an integer, got True"),
        ({"joints": "abc"}, "joints: expected a list, got 'abc'"),
        ({"state": "joints"}, "state: expected a list, got 'joints'"),
        ({"state": ("joints",)}, "state[0]: expected a mapping of fields, got 'joints'"),
        ({"state": (Source("joints", -3),)}, "state[0].size: expected at least 1, got -3"),
    ],
)
def test_a_schema_of_wrong_types_is_refused_in_python_as_in_a_file(
    robot: Robot, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(robot, **changes)


@pytest.mark.usefixtures("without_shape_checks")
def test_lists_become_tuples(robot: Robot) -> None:
    lists: dict[str, Any] = {name: list(getattr(robot, name)) for name in ("state", "action", "cameras", "relative")}
    same = Robot("toy", **lists, robot_types=["toy"], rate=10)  # pyright: ignore[reportArgumentType]
    assert same == robot
    assert hash(same) == hash(robot)


@pytest.mark.parametrize(
    ("key", "feature", "message"),
    [
        ("joints", None, r"features: expected numeric columns \['joints'\] for the state, got \['gripper', 'joints_ta"),
        ("joints", Feature("string", (1,)), r"features: expected numeric columns \['joints'\] for the state, got \['g"),
        ("joints_target", Feature("float32", (3,)), r"\['joints_target'\].shape: expected \(2,\) for the action, got"),
        ("joints", Feature("float32", (2, 1)), r"\['joints'\].shape: expected \(2,\) for the state, got \(2, 1\)"),
        (
            "wrist",
            None,
            r"features: expected cameras \['wrist'\], got \['head'\] \(view 0 is the head or front camera, ",
        ),
        ("wrist", Feature("float32", (2,)), r"features: expected cameras \['wrist'\], got \['head'\] \(view 0 is "),
    ],
)
def test_a_set_that_does_not_fit_is_refused(robot: Robot, key: str, feature: Feature | None, message: str) -> None:
    features = described(robot) | {key: feature}
    with pytest.raises(ValueError, match=message):
        robot.check(info({name: entry for name, entry in features.items() if entry is not None}))


def test_every_mismatch_is_told_at_once(robot: Robot) -> None:
    with pytest.raises(ValueError, match=r"(?s)'joints'.*'wrist'.*robot_type: .* got 'spot'; fps: expected 10, got 30"):
        robot.check(info({"head": Feature("video", (8, 8, 3))}, "spot", 30))


def test_joint_names_are_compared_where_the_set_has_some(robot: Robot) -> None:
    named = replace(robot, joints=("shoulder", "elbow", "gripper"))
    features = described(robot)
    named.check(info(features))
    features["joints_target"] = Feature("float32", (2,), {"motors": ["shoulder", "elbow"]})
    features["gripper_target"] = Feature("float32", (1,), ["gripper"])
    named.check(info(features))
    features["joints_target"] = Feature("float32", (2,), ["elbow", "shoulder"])
    with pytest.raises(ValueError, match=r"names of the action: expected .*, got \('elbow', 'shoulder', 'gripper'\)"):
        named.check(info(features))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a `modality.json` and four cameras."""
    root = tmp_path_factory.mktemp("recorded") / "set"
    features = {
        "observation.state": Feature("float32", (3,), ["shoulder", "elbow", "gripper"]),
        "action": Feature("float32", (3,), {"motors": ["shoulder", "elbow", "gripper"]}),
        "extra": Feature("float32", (2,)),
    }
    cameras = [f"observation.images.{name}" for name in ("top", "left", "right", "side")]
    features |= {camera: Feature("image", (4, 4, 3)) for camera in cameras}
    frame = {key: np.zeros(feature.shape) for key, feature in features.items() if feature.is_numeric}
    frame |= {camera: np.zeros((4, 4, 3), dtype=np.uint8) for camera in cameras}
    with LeRobotWriter(root, fps=20, features=features, robot_type="so101") as writer:
        writer.add(frame, "reach")
        writer.save_episode()
    modality = {
        "state": {"arm": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3}},
        "action": {"gripper": {"start": 2, "end": 3}, "arm": {"start": 0, "end": 2}},
        "video": {"ego": {"original_key": "observation.images.top"}, "left": {}},
    }
    (root / "meta/modality.json").write_text(json.dumps(modality))
    return root


def test_a_first_schema_comes_from_a_set(recorded: Path, tmp_path: Path) -> None:
    robot = Robot.from_info(recorded)
    assert robot == Robot(
        name="so101",
        state=(Source("observation.state", 3),),
        action=(Source("action", 3),),
        cameras=("observation.images.top", "observation.images.left", "observation.images.right"),
        robot_types=("so101",),
        joints=("shoulder", "elbow", "gripper"),
        rate=20,
    )
    found = LeRobotSet(recorded)
    assert Robot.from_info(str(recorded)) == Robot.from_info(found.info) == robot
    robot.check(found.info)
    robot.save(str(tmp_path / "so101.yaml"))
    assert Robot.load(str(tmp_path / "so101.yaml")) == robot


def test_a_first_schema_takes_what_the_set_does_not_tell(recorded: Path) -> None:
    cameras = (None, "observation.images.side", None)
    robot = Robot.from_info(
        recorded, "mine", state=("extra", "observation.state"), action=(), cameras=cameras, relative=()
    )
    assert (robot.name, robot.cameras, robot.action, robot.joints) == ("mine", cameras, (), None)
    assert [source.size for source in robot.state] == [2, 3]
    assert Robot.from_info(recorded, relative=(2, -1)).relative_mask == (True, True, False)


def test_a_first_schema_has_three_views(recorded: Path) -> None:
    whole = Info.load(recorded)
    features = {key: feature for key, feature in whole.features.items() if key != "observation.images.top"}
    for kept in (3, 2, 1):
        pictures = [key for key, feature in features.items() if feature.is_visual][:kept]
        few = {key: feature for key, feature in features.items() if not feature.is_visual or key in pictures}
        assert Robot.from_info(replace(whole, features=few)).cameras == (*pictures, *[None] * (3 - kept))


def test_chosen_cameras_are_cameras_of_the_set_and_fill_three_views(recorded: Path) -> None:
    side, left = "observation.images.side", "observation.images.left"
    assert Robot.from_info(recorded, cameras=[side]).cameras == (side, None, None)
    assert Robot.from_info(recorded, cameras=[None, left]).cameras == (None, left, None)
    assert Robot.from_modality(recorded, cameras=["left"]).cameras == (left, None, None)
    for camera in ("side", "observation.state"):
        with pytest.raises(ValueError, match=rf"cameras: expected names out of \['obs.*'\], got \['{camera}'\]"):
            Robot.from_info(recorded, cameras=[side, camera])
    for make, camera, known in ((Robot.from_info, side, "observation.images.top"), (Robot.from_modality, "ego", "ego")):
        with pytest.raises(
            ValueError, match=rf"cameras: expected a list of names out of \['{known}', .*, got '{camera}'"
        ):
            make(recorded, cameras=camera)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot_type": None}, "name: expected a name, because the set has no robot_type, got None"),
        (
            {"without": "action"},
            r"action: expected columns out of \['observation.state', 'extra'\], or \(\) for none, got",
        ),
        ({"without": "images"}, r"cameras: expected at least one, each once .view 0 is the head .*, got \(None, None"),
    ],
)
def test_a_set_that_tells_too_little_is_refused(recorded: Path, changes: dict[str, Any], message: str) -> None:
    whole = Info.load(recorded)
    features = {key: value for key, value in whole.features.items() if changes.get("without", "-") not in key}
    changed = replace(whole, features=features, robot_type=changes.get("robot_type", whole.robot_type))
    with pytest.raises(ValueError, match=message):
        Robot.from_info(changed)


def test_modality_makes_a_schema(recorded: Path) -> None:
    robot = Robot.from_modality(recorded, "groot", cameras=(None, "ego", None), relative=(-3,))
    assert robot.cameras == (None, "observation.images.top", None)
    assert [(source.key, source.start, source.size) for source in robot.action] == [("action", 2, 1), ("action", 0, 2)]
    robot.check(Info.load(recorded))
    assert Robot.from_modality(str(recorded)).cameras == (
        "observation.images.top",
        "observation.images.left",
        None,
    )
    with pytest.raises(ValueError, match=r"cameras: expected names out of \['ego', 'left'\], got \['wrist'\]"):
        Robot.from_modality(recorded, "groot", cameras=("wrist",))


def test_a_set_without_modality_is_refused(toy_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"modality.json: missing; Robot.from_info makes a schema"):
        Robot.from_modality(toy_root)
