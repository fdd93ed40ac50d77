"""Samples of a set: what they refuse, with the set's name in the message, and how a set is read."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from moteur.data import (
    FieldStatistics,
    Robot,
    RobotDataset,
    RobotStatistics,
    RobotTransform,
    Source,
    Window,
    compute_statistics,
)
from moteur.data.lerobot.video import available_backends

STEPS = 6
WINDOW = Window(offsets=(-3, 0, 3), chunk=STEPS)


def test_a_set_that_does_not_fit_its_robot_is_named(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> None:
    other = replace(robot, robot_types=("other",))
    message = (
        rf"^{toy_root}/meta/info.json does not fit robot 'toy': robot_type: expected one of \['other'\], got 'toy'$"
    )
    with pytest.raises(ValueError, match=message):
        RobotDataset(toy_root, RobotTransform(other, statistics, window=WINDOW))
    with pytest.raises(ValueError, match=message):
        compute_statistics([toy_root], other, progress=False)


def test_a_set_of_another_rate_than_the_windows_seconds_is_named(
    toy_root: Path, robot: Robot, statistics: RobotStatistics
) -> None:
    transform = RobotTransform(robot, statistics, window=Window(seconds=(-0.25, 0.0, 0.25), chunk=STEPS))
    message = rf"^{toy_root}/meta/info.json does not fit the window: seconds: expected multiples"
    with pytest.raises(ValueError, match=message):
        RobotDataset(toy_root, transform)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"relative": (-3,)},
            "expected those of 'joints_target[0]' in this place, got 'joints_target[0] - joints[0]'",
        ),
        (
            {"state": (Source("gripper", 1), Source("joints", 2)), "relative": ()},
            "statistics: expected those of 'gripper[0]' in this place, got 'joints[0]'",
        ),
        (
            {"action": (Source("joints_target", 2), Source("gripper", 1))},
            "statistics: expected those of 'gripper[0]' in this place, got 'gripper_target[0]'",
        ),
    ],
)
def test_statistics_of_other_columns_or_relative_dimensions_are_refused(
    robot: Robot, statistics: RobotStatistics, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    schema = replace(robot, **change)
    statistics.save(tmp_path / "stats.json")
    merged = RobotStatistics.merge([statistics, statistics])
    for found in (statistics, RobotStatistics.load(tmp_path / "stats.json"), merged):
        RobotTransform(robot, found, window=WINDOW)
        with pytest.raises(ValueError, match=re.escape(message)):
            RobotTransform(schema, found, window=WINDOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("column", "place"),
    [
        ("gripper", "state: {} as dimension 2 (gripper[0])"),
        ("joints_target", "action: {} as dimension 0 (joints_target[0] - joints[0])"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_set_frame_and_column(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, column: str, place: str, value: float, tmp_path: Path
) -> None:
    root = shutil.copytree(toy_root, tmp_path / "set")
    path = max(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    row = table["index"].to_pylist().index(12)  # frame 1 of the third episode
    rows = table[column].to_pylist()
    rows[row] = [value] * len(rows[row]) if isinstance(rows[row], list) else value
    broken = pa.array(rows, type=table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, broken), path)
    dataset = RobotDataset(root, RobotTransform(robot, statistics, window=WINDOW))
    message = f"{root}, episode 2, frame 1: " + place.format(f"expected finite numbers, got {value}")
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset[12]
    assert dataset[13].state.isfinite().all()


def test_statistics_that_do_not_say_what_they_are_of_still_load(
    robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    values = statistics.to_dict()
    for group in ("state", "action"):
        del values[group]["entries"]  # as files were written before
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = RobotStatistics.load(tmp_path / "old.json")
    RobotTransform(replace(robot, relative=(-3,)), old, window=WINDOW)
    assert RobotStatistics.merge([old, statistics]).state.entries is None


def watching(golden: Path) -> tuple[Path, RobotTransform]:
    """The golden set's video of one camera, and nothing else."""
    robot = Robot("top", (), (), ("observation.images.top",))
    nothing = RobotStatistics("top", 50, FieldStatistics(0, (), (), (), ()), None)
    return golden / "lerobot_v21/dataset", RobotTransform(robot, nothing, window=Window(offsets=(-2, 0, 2)), size=128)


def test_the_video_backend_is_the_one_that_is_asked_for(golden: Path) -> None:
    root, transform = watching(golden)
    chosen = RobotDataset(root, transform, backend="pyav")
    assert chosen.source.backend == "pyav"
    assert torch.equal(chosen[7].frames, RobotDataset(root, transform)[7].frames)
    if "torchcodec" not in available_backends():
        with pytest.raises(
            ValueError, match=r"backend: expected one of \('pyav',\), which work here, got 'torchcodec'"
        ):
            RobotDataset(root, transform, backend="torchcodec")[7]


def test_a_window_of_the_present_alone_gives_the_same_samples_with_one_frame(golden: Path) -> None:
    root, transform = watching(golden)
    alone = RobotTransform(transform.robot, transform.statistics, window=Window(offsets=(0,)), size=128)
    whole, present = RobotDataset(root, transform, episodes=range(1)), RobotDataset(root, alone, episodes=range(1))
    assert len(present) == len(whole)
    assert torch.equal(present[7].frames, whole[7].frames[:, 1:2])
