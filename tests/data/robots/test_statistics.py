"""Statistics over windows against brute force, and their way into files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moteur.data import ROBOTS, Robot, RobotStatistics, Source, compute_statistics, merge_statistics
from moteur.data.compute_statistics import main
from moteur.data.lerobot import Feature, LeRobotSet, SetWriter
from moteur.recipes.checkpoints.transforms import released_statistics

POINTS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def brute_force(roots: list[Path], state_keys: list[str], action_keys: list[str], relative: int, steps: int) -> dict:
    """Every supervised element by two plain loops: the state at each frame, the real steps of each chunk."""
    states, actions = [], []
    for root in roots:
        items = list(LeRobotSet(root, keys=[*state_keys, *action_keys]))
        state = [np.concatenate([np.ravel(item[key]) for key in state_keys]).astype(np.float64) for item in items]
        action = [np.concatenate([np.ravel(item[key]) for key in action_keys]).astype(np.float64) for item in items]
        for now, item in enumerate(items):
            states.append(state[now])
            for step in range(steps):
                later = now + step
                if later < len(items) and items[later]["episode_index"] == item["episode_index"]:
                    row = action[later].copy()
                    row[:relative] -= state[now][:relative]
                    actions.append(row)
    return {"state": np.stack(states), "action": np.stack(actions)}


def check(statistics: RobotStatistics, expected: dict) -> None:
    for group, rows in expected.items():
        found = getattr(statistics, group)
        assert found.count == len(rows)
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(found, name), getattr(rows, name)(axis=0), rtol=1e-10, atol=1e-10)
        for name, point in POINTS.items():
            np.testing.assert_allclose(getattr(found, name), np.quantile(rows, point, axis=0), rtol=1e-10, atol=1e-10)


STATE, ACTION = ["joints", "gripper"], ["joints_target", "gripper_target"]


@pytest.mark.parametrize("limit", [5, 65_536])
@pytest.mark.parametrize("steps", [1, 6, 50])
def test_statistics_equal_brute_force_over_the_supervised_elements(
    toy_root: Path, robot: Robot, steps: int, limit: int
) -> None:
    found = compute_statistics([toy_root], robot, steps=steps, limit=limit, progress=False)
    check(found, brute_force([toy_root], STATE, ACTION, 2, steps))
    assert found.robot == "toy"
    assert found.steps == steps


def test_several_sets_count_as_one_and_processes_change_nothing(toy_root: Path, robot: Robot, tmp_path: Path) -> None:
    other = tmp_path / "other"
    features = {key: Feature("float32", (2 if key.startswith("joints") else 1,)) for key in STATE + ACTION}
    features |= {"head": Feature("image", (4, 4, 3)), "wrist": Feature("image", (4, 4, 3))}
    rng = np.random.default_rng(1)
    with SetWriter(other, fps=10, features=features, robot_type="toy") as writer:
        for length in [1, 3] * 10:
            for _ in range(length):
                frame = {key: rng.normal(size=feature.shape) for key, feature in features.items()}
                picture = np.zeros((4, 4, 3), dtype=np.uint8)
                writer.add(frame | {"head": picture, "wrist": picture}, "reach")
            writer.save_episode()
    roots = [toy_root, other]
    alone = compute_statistics(roots, robot, steps=6, limit=20, progress=False)
    check(alone, brute_force(roots, STATE, ACTION, 2, 6))
    shared = compute_statistics(roots, robot, steps=6, limit=20, workers=2, progress=False)
    assert shared == alone
    turned = compute_statistics(roots[::-1], robot, steps=6, limit=20, progress=False)
    assert turned.action is not None
    assert alone.action is not None
    assert turned.action.q50 == alone.action.q50
    np.testing.assert_allclose(turned.action.std, alone.action.std, rtol=1e-14)


def test_the_golden_aloha_set_has_relative_arms_and_absolute_grippers(golden: Path) -> None:
    root = golden / "lerobot_v30/dataset"
    found = compute_statistics([root], ROBOTS["aloha"], steps=50, progress=False)
    dataset = LeRobotSet(root, keys=["observation.state", "action"], offsets={"action": range(50)})
    rows = []
    for item in dataset:
        reference = item["observation.state"].double().clone()
        reference[[6, 13]] = 0
        rows.append((item["action"].double() - reference)[~item["action_is_pad"]])
    check(
        found,
        {
            "action": np.concatenate(rows),
            "state": np.stack([item["observation.state"] for item in dataset]).astype(np.float64),
        },
    )


def test_statistics_survive_files_to_the_last_bit(statistics: RobotStatistics, tmp_path: Path) -> None:
    statistics.save(tmp_path / "stats.json")
    assert RobotStatistics.load(tmp_path / "stats.json") == statistics
    assert RobotStatistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics


def test_the_command_writes_what_the_function_returns(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot.save(tmp_path / "toy.yaml")
    out = tmp_path / "stats.json"
    main([str(toy_root), "--robot", str(tmp_path / "toy.yaml"), "--steps", "6", "--out", str(out)])
    assert RobotStatistics.load(out) == statistics
    assert "statistics: 100%" in capsys.readouterr().err


def test_the_command_finds_a_built_in_robot_by_itself(golden: Path, tmp_path: Path) -> None:
    root = golden / "lerobot_v30/dataset"
    main([str(root), "--out", str(tmp_path / "stats.json")])
    assert RobotStatistics.load(tmp_path / "stats.json") == compute_statistics([root], ROBOTS["aloha"], progress=False)


def test_data_without_actions_have_statistics_of_the_state_alone(toy_root: Path, robot: Robot) -> None:
    watcher = replace(robot, action=(), relative=())
    found = compute_statistics([toy_root], watcher, progress=False)
    assert found.action is None
    assert found.state.dims == 3
    assert RobotStatistics.from_dict(found.to_dict()) == found


def test_released_statistics_are_joined_in_the_schemas_order() -> None:
    franka = ROBOTS["franka"]
    values = {
        key: {name: np.arange(size) + place for place, name in enumerate(("mean", "std", "min", "max"))}
        for key, size in (
            ("states.joint.position", 7),
            ("states.gripper.position", 1),
            ("actions.joint.position", 7),
            ("actions.gripper.position", 1),
        )
    }
    found = released_statistics(values, franka)
    assert found.state.mean == (0, 1, 2, 3, 4, 5, 6, 0)
    assert found.action is not None
    assert found.action.max == (3, 4, 5, 6, 7, 8, 9, 3)
    assert found.action.q50 is None
    del values["actions.gripper.position"]["std"]
    with pytest.raises(
        ValueError, match=r"actions.gripper.position.std: expected 1 numbers, got None"
    ):
        released_statistics(values, franka)


def test_statistics_computed_apart_merge_into_those_of_all_data(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    features = {key: Feature("float32", (2 if key.startswith("joints") else 1,)) for key in STATE + ACTION}
    features |= {"head": Feature("image", (4, 4, 3)), "wrist": Feature("image", (4, 4, 3))}
    picture, rng = np.zeros((4, 4, 3), dtype=np.uint8), np.random.default_rng(2)
    with SetWriter(tmp_path / "other", fps=10, features=features, robot_type="toy") as writer:
        for _ in range(11):
            frame = {key: rng.normal(-5, 9, size=feature.shape) for key, feature in features.items()}
            writer.add(frame | {"head": picture, "wrist": picture}, "reach")
        writer.save_episode()
    other = compute_statistics([tmp_path / "other"], robot, steps=6, progress=False)
    whole = compute_statistics([toy_root, tmp_path / "other"], robot, steps=6, progress=False)
    merged = merge_statistics([statistics, other])
    for group in ("state", "action"):
        found, expected = getattr(merged, group), getattr(whole, group)
        assert found.count == expected.count
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
        assert found.q50 is None
    with pytest.raises(ValueError, match=r"parts must be of one robot, chunk length and size, got \[\('toy', 50, .*6"):
        merge_statistics([statistics, replace(statistics, steps=50)])
    with pytest.raises(ValueError, match=r"parts must be of one robot, chunk length and size, got \[\]"):
        merge_statistics([])
    with pytest.raises(ValueError, match=r"parts must count at least one row each, got \[25, 0\]"):
        merge_statistics([statistics, replace(statistics, state=replace(statistics.state, count=0))])


def test_what_cannot_be_computed_is_named(toy_root: Path, robot: Robot, golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sets must hold at least one episode, got "):
        compute_statistics([], robot)
    with pytest.raises(ValueError, match=r"info.json does not fit robot 'toy'"):
        compute_statistics([toy_root, golden / "lerobot_v30/dataset"], robot, progress=False)
    (tmp_path / "stats.json").write_text('{"robot": "toy"}')
    with pytest.raises(ValueError, match=r"stats.json: not statistics of a robot: KeyError\('action'\)"):
        RobotStatistics.load(tmp_path / "stats.json")


def test_values_that_are_not_finite_are_named_with_their_episode(tmp_path: Path) -> None:
    features = {"joints": Feature("float32", (2,)), "head": Feature("image", (4, 4, 3))}
    with SetWriter(tmp_path, fps=10, features=features) as writer:
        for _ in range(2):
            writer.add({"joints": [0.0, 1.0], "head": np.zeros((4, 4, 3), dtype=np.uint8)}, "reach")
        writer.save_episode()
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    broken = pa.array([[0.0, float("nan")]] * 2, type=table["joints"].type)
    pq.write_table(table.set_column(0, "joints", broken), path)
    robot = Robot("one", (Source("joints", 2),), (), ("head",))
    with pytest.raises(ValueError, match=r"episode 0: rows must be finite, got 2 values that are not"):
        compute_statistics([tmp_path], robot, progress=False)
