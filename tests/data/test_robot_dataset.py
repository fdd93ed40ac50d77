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
    merge_statistics,
    stack_samples,
)
from moteur.data.lerobot import available_backends
from moteur.recipes import Processor, preset
from moteur.recipes.batches import targets_of
from moteur.recipes.checkpoints.columns import column_statistics, released_statistics
from moteur.recipes.collate import Collator

STEPS = 6
WINDOW = Window(offsets=(-3, 0, 3), steps=STEPS)


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
    transform = RobotTransform(robot, statistics, window=Window(seconds=(-0.25, 0.0, 0.25), steps=STEPS))
    message = rf"^{toy_root}/meta/info.json does not fit the window: seconds: .*-0.25"
    with pytest.raises(ValueError, match=message):
        RobotDataset(toy_root, transform)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"relative": (-3,)},
            "expected those of 'joints_target[0]' as action dimension 0, got 'joints_target[0] - joints[0]'",
        ),
        (
            {"state": (Source("gripper", 1), Source("joints", 2)), "relative": ()},
            "statistics: expected those of 'gripper[0]' as state dimension 0, got 'joints[0]'",
        ),
        (
            {"action": (Source("joints_target", 2), Source("gripper", 1))},
            "statistics: expected those of 'gripper[0]' as action dimension 2, got 'gripper_target[0]'",
        ),
    ],
)
def test_statistics_of_other_columns_or_relative_dimensions_are_refused(
    robot: Robot, statistics: RobotStatistics, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    schema = replace(robot, **change)
    statistics.save(tmp_path / "stats.json")
    merged = merge_statistics([statistics, statistics])
    columns = json.loads(json.dumps(column_statistics(statistics, robot)))
    through_columns = released_statistics(columns, robot, steps=STEPS)
    for found in (statistics, RobotStatistics.load(tmp_path / "stats.json"), merged, through_columns):
        RobotTransform(robot, found, window=WINDOW)
        with pytest.raises(ValueError, match=re.escape(message)):
            RobotTransform(schema, found, window=WINDOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", ["gripper", "joints_target"])
def test_a_number_that_is_not_finite_is_refused_with_its_set_frame_and_column(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, column: str, value: float, tmp_path: Path
) -> None:
    root = shutil.copytree(toy_root, tmp_path / "set")
    path = max(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    place = table["index"].to_pylist().index(12)  # frame 1 of the third episode
    rows = table[column].to_pylist()
    rows[place] = [value] * len(rows[place]) if isinstance(rows[place], list) else value
    broken = pa.array(rows, type=table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, broken), path)
    dataset = RobotDataset(root, RobotTransform(robot, statistics, window=WINDOW))
    count = 2 if column == "joints_target" else 1
    message = f"{root}, episode 2, frame 1: column '{column}': expected finite numbers, got {count} such as {value}"
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
    columns = column_statistics(old, robot)
    assert released_statistics(columns, robot, steps=STEPS) == old
    assert merge_statistics([old, statistics]).state.entries is None


@pytest.mark.usefixtures("without_shape_checks")
def test_the_present_alone_is_a_window_but_nothing_to_learn_foresight_from(
    toy_root: Path, robot: Robot, statistics: RobotStatistics
) -> None:
    window = Window(offsets=(0,), steps=STEPS)
    assert window.frame_offsets(10) == Window(seconds=(0.0,), steps=STEPS).frame_offsets(10) == (0,)
    config = preset("tiny")
    transform = RobotTransform(robot, statistics, window=window, size=config.frame_size, dims=config.action_dim)
    samples = [RobotDataset(toy_root, transform)[position] for position in (0, 5)]
    message = "samples: expected history, present and future, got 1 time; change RobotTransform's window"
    with pytest.raises(ValueError, match=message):
        Collator(Processor(config, None))(samples)  # pyright: ignore[reportArgumentType]  # not reached
    with pytest.raises(ValueError, match=message):
        targets_of(stack_samples(samples))


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
        with pytest.raises(ValueError, match=r"backend.* one of \('pyav',\).*, got 'torchcodec'"):
            RobotDataset(root, transform, backend="torchcodec")[7]


def test_the_samples_of_the_present_are_the_same_with_one_frame_and_read_alike(golden: Path) -> None:
    root, transform = watching(golden)
    whole = RobotDataset(root, transform, episodes=range(1), backend="pyav")
    present = whole.of_the_present()
    assert len(present) == len(whole)
    assert present.source.backend == "pyav"
    assert torch.equal(present[7].frames, whole[7].frames[:, 1:2])
    assert whole.transform.window == Window(offsets=(-2, 0, 2))  # the original keeps its own
