"""What goes into a checkpoint's `stats.json` and comes back out, released files included."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moteur.data import (
    FieldStatistics,
    Robot,
    RobotDataset,
    RobotStatistics,
    RobotTransform,
    Sample,
    Source,
    Window,
    compute_statistics,
)
from moteur.recipes.checkpoints.transforms import (
    column_statistics,
    dump_transforms,
    load_transforms,
    released_statistics,
)


def through_json(values: object) -> Any:  # noqa: ANN401
    return json.loads(json.dumps(values, allow_nan=False))


def schemas(robot: Robot) -> dict[str, Robot]:
    part = Source("joints", 1, start=1, part=True)
    return {
        "two columns": robot,
        "parts of a column": replace(robot, state=(part, Source("gripper", 1)), action=(part, part), relative=(1, -1)),
        "the same column twice": replace(robot, action=robot.state),
        "no actions": replace(robot, action=(), relative=()),
    }


@pytest.mark.parametrize("kind", schemas(Robot.known("aloha")))
def test_statistics_by_column_come_back_to_the_last_bit(toy_root: Path, robot: Robot, kind: str) -> None:
    schema = schemas(robot)[kind]
    statistics = compute_statistics([toy_root], schema, chunk=6, progress=False)
    columns = through_json(column_statistics(statistics, schema))
    assert released_statistics(columns, schema, chunk=6) == statistics


def test_the_released_form_is_a_subset(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> None:
    values = through_json(dump_transforms(RobotTransform(robot, statistics, window=Window(chunk=6))))
    assert list(values) == ["toy"]
    sizes = {"joints": 2, "gripper": 1, "joints_target": 2, "gripper_target": 1}
    for column, size in sizes.items():
        for name in ("mean", "std", "min", "max"):
            assert np.shape(values["toy"][column][name]) == (size,)
    assert set(values["toy"]) == {*sizes, "preparation"}
    assert values["toy"]["gripper"]["mean"] == [statistics.state.mean[2]]
    assert toy_root.is_dir()


def test_statistics_by_column_say_what_they_are_of(robot: Robot, statistics: RobotStatistics) -> None:
    columns = through_json(column_statistics(statistics, robot))
    found = released_statistics(columns, robot, chunk=6)
    with pytest.raises(ValueError, match=r"expected those of 'joints_target\[0\]' in this place, got "):
        RobotTransform(replace(robot, relative=(-3,)), found, window=Window(chunk=6))


@pytest.mark.parametrize("seconds", [None, (-0.3, 0.0, 0.3)])
def test_a_preparation_comes_back_whole(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, seconds: tuple[float, ...] | None
) -> None:
    window = Window(offsets=(-3, 0, 3), seconds=seconds, chunk=6)
    given = RobotTransform(robot, statistics, window=window, size=16, dims=5, mode="quantiles", images="float32")
    found = load_transforms(through_json(dump_transforms(given)))["toy"]
    assert (found.robot, found.statistics, found.window) == (robot, statistics, window)
    samples = [RobotDataset(toy_root, preparation)[4] for preparation in (given, found)]
    for field in fields(Sample):
        value, other = (getattr(sample, field.name) for sample in samples)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    chunk, state = torch.randn(6, 5), torch.randn(3)
    assert torch.equal(given.commands(chunk, state), found.commands(chunk, state))


def test_the_convention_and_the_units_of_pi_come_back_and_are_not_named_where_they_are_not_used(
    robot: Robot, statistics: RobotStatistics
) -> None:
    aloha = replace(Robot.known("aloha"), adapt_to_pi=True)
    field = FieldStatistics(9, *[(value,) * 14 for value in (0.0, 1.0, -1.0, 1.0)])
    adapted = RobotTransform(aloha, RobotStatistics("aloha", 50, field, field), convention="openpi")
    plain = RobotTransform(robot, statistics, window=Window(chunk=6))
    values = through_json(dump_transforms(plain, adapted))
    assert "convention" not in values["toy"]["preparation"]
    found = load_transforms(values)
    assert (found["toy"].convention, found["aloha"].convention) == ("internvla_a1", "openpi")
    assert found["aloha"].robot == aloha
    chunk, state = torch.randn(50, 32), torch.rand(14)
    assert torch.equal(found["aloha"].commands(chunk, state), adapted.commands(chunk, state))


def released() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    columns = ("observation.state", "action")
    names = ("mean", "std", "min", "max")
    # In the order of the names, so that no minimum is above its maximum.
    lists = {
        key: dict(zip(names, np.sort(np.abs(rng.normal(size=(4, 14))), axis=0).tolist(), strict=True))
        for key in columns
    }
    return {"aloha": lists}


def test_a_released_file_gives_the_built_in_robot_as_released() -> None:
    values = released()
    found = load_transforms(values)["aloha"]
    assert found.robot is Robot.known("aloha")
    assert found.statistics.state.mean == tuple(values["aloha"]["observation.state"]["mean"])
    assert found.statistics.action is not None
    assert found.statistics.action.std == tuple(values["aloha"]["action"]["std"])
    assert found.statistics.action.q50 is None
    assert (found.window, found.size, found.dims, found.mode) == (Window(), 224, 32, "mean_std")


def test_several_robots_share_a_file(robot: Robot, statistics: RobotStatistics) -> None:
    released_one = load_transforms(released())["aloha"]
    own = RobotTransform(robot, statistics, window=Window(chunk=6))
    both = load_transforms(through_json(dump_transforms(own, released_one)))
    assert list(both) == ["toy", "aloha"]
    assert both["aloha"].statistics == released_one.statistics
    with pytest.raises(ValueError, match="transforms: expected each robot once, got 'toy' twice"):
        dump_transforms(own, own)


def test_parts_of_a_column_are_cut_out_of_a_released_files_whole_one(robot: Robot) -> None:
    parts = replace(robot, state=(Source("action", 2, start=1, part=True), Source("action", 1, part=True)))
    lists = {name: [float(place), 5.0, 6.0] for place, name in enumerate(("mean", "std", "min", "max"))}
    targets = {
        key: {name: [0.0] * size for name in lists} for key, size in (("joints_target", 2), ("gripper_target", 1))
    }
    found = released_statistics({"action": lists} | targets, parts)
    assert found.state.mean == (5, 6, 0)
    assert found.state.max == (5, 6, 3)
    twice = replace(robot, action=robot.state)
    columns = {"joints": {name: [0.0] * 2 for name in lists}, "gripper": {name: [0.0] for name in lists}}
    with pytest.raises(ValueError, match=r"joints \(action 0\).mean: expected 2 numbers, got None"):
        released_statistics(columns, twice)  # whose statistics these are, state or action, nobody can tell


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spot": {}}, "statistics of 'spot': robot: expected one of .*, got 'spot'"),
        (
            {"aloha": {}},
            r"statistics of 'aloha': observation.state.mean: expected 14 numbers, got None",
        ),
        ({"aloha": {"preparation": {"size": 9}}}, "statistics of 'aloha': 'robot'"),
        ({"aloha": {"preparation": {"robot": 3}}}, "statistics of 'aloha': robot: expected a mapping of fields, got 3"),
    ],
)
def test_damaged_entries_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_transforms(released() | change)


def test_released_statistics_are_joined_in_the_schemas_order() -> None:
    franka = Robot.known("franka")
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
    with pytest.raises(ValueError, match=r"actions.gripper.position.std: expected 1 numbers, got None"):
        released_statistics(values, franka)


def test_plain_statistics_of_a_built_in_robot_are_read_back_too() -> None:
    statistics = replace(load_transforms(released())["aloha"].statistics, chunk=30)
    found = load_transforms(through_json({"aloha": statistics.to_dict()}))["aloha"]
    assert (found.robot, found.statistics, found.window) == (Robot.known("aloha"), statistics, Window(chunk=30))
    with pytest.raises(ValueError, match=r"statistics of 'mine': .*mine"):
        load_transforms({"mine": statistics.to_dict()})
