"""What a set, a window or statistics are refused for, and that the message says which of 5,000 sets it is."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import default_collate

from moteur.data import (
    Preparation,
    Robot,
    RobotDataset,
    RobotStatistics,
    Source,
    Window,
    compute_statistics,
    merge_statistics,
)
from moteur.data.compute_statistics import main
from moteur.recipes import Processor, preset
from moteur.recipes.batches import targets_of
from moteur.recipes.checkpoints.transforms import column_statistics, released_statistics
from moteur.recipes.collate import Collator

STEPS = 6
WINDOW = Window(frames=(-3, 0, 3), steps=STEPS)


def test_a_set_that_does_not_fit_its_robot_is_named(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    other = replace(robot, robot_types=("other",))
    message = rf"^{toy_root}/meta/info.json does not fit robot 'toy': robot_type is 'toy', expected one of \['other'\]$"
    with pytest.raises(ValueError, match=message):
        RobotDataset(toy_root, Preparation(other, statistics, window=WINDOW))
    with pytest.raises(ValueError, match=message):
        compute_statistics([toy_root], other, progress=False)
    with pytest.raises(ValueError, match=rf"^{toy_root}: robot_type 'toy' has no built-in schema"):
        main([str(toy_root), "--out", str(tmp_path / "stats.json")])


def test_a_set_of_another_rate_than_the_windows_seconds_is_named(
    toy_root: Path, robot: Robot, statistics: RobotStatistics
) -> None:
    preparation = Preparation(robot, statistics, window=Window(seconds=(-0.25, 0.0, 0.25), steps=STEPS))
    message = rf"^{toy_root}/meta/info.json does not fit the window: seconds: -0.25 is not a multiple of the frame time"
    with pytest.raises(ValueError, match=message):
        RobotDataset(toy_root, preparation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"relative": (-3,)},
            "of 'joints_target[0] - joints[0]' as action dimension 0, the schema says 'joints_target[0]'",
        ),
        (
            {"state": (Source("gripper", 1), Source("joints", 2)), "relative": ()},
            "statistics are of 'joints[0]' as state dimension 0, the schema says 'gripper[0]'",
        ),
        (
            {"action": (Source("joints_target", 2), Source("gripper", 1))},
            "statistics are of 'gripper_target[0]' as action dimension 2, the schema says 'gripper[0]'",
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
        Preparation(robot, found, window=WINDOW)
        with pytest.raises(ValueError, match=re.escape(message)):
            Preparation(schema, found, window=WINDOW)


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
    dataset = RobotDataset(root, Preparation(robot, statistics, window=WINDOW))
    count = 2 if column == "joints_target" else 1
    message = f"{root}, episode 2, frame 1: column '{column}': expected finite numbers, got {count} such as {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset[12]
    assert dataset[13]["state"].isfinite().all()


def test_statistics_that_do_not_say_what_they_are_of_still_load(
    robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    values = statistics.to_dict()
    for group in ("state", "action"):
        del values[group]["entries"]  # as files were written before
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = RobotStatistics.load(tmp_path / "old.json")
    Preparation(replace(robot, relative=(-3,)), old, window=WINDOW)
    columns = column_statistics(old, robot)
    assert released_statistics(columns, robot, steps=STEPS) == old
    assert merge_statistics([old, statistics]).state.entries is None


def test_statistics_of_other_columns_do_not_merge(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> None:
    absolute = compute_statistics([toy_root], replace(robot, relative=()), steps=STEPS, progress=False)
    with pytest.raises(ValueError, match=r"parts must be of the same columns, got \[\('joints_target\[0\]',.* - "):
        merge_statistics([statistics, absolute])


@pytest.mark.parametrize(
    "times",
    [(), (15, 0, -15), (-15, -1, 15), (-15, 0), (0, 15), (0, 15, 30), (-30, -15, 0), (-15, 0, 0), (-15, 0, 15, 30)],
)
def test_times_that_are_not_history_present_and_future_are_refused(times: tuple[int, ...]) -> None:
    message = "expected a time before 0, 0 and a time after it, or (0,) alone, got"
    with pytest.raises(ValueError, match=re.escape(f"frames: {message} {times}")):
        Window(frames=times)
    seconds = tuple(time / 30 for time in times)
    with pytest.raises(ValueError, match=re.escape(f"seconds: {message} {seconds}")):
        Window(seconds=seconds)


@pytest.mark.usefixtures("without_shape_checks")
def test_the_present_alone_is_a_window_but_nothing_to_learn_foresight_from(
    toy_root: Path, robot: Robot, statistics: RobotStatistics
) -> None:
    window = Window(frames=(0,), steps=STEPS)
    assert window.frame_offsets(10) == Window(seconds=(0.0,), steps=STEPS).frame_offsets(10) == (0,)
    config = preset("tiny")
    preparation = Preparation(robot, statistics, window=window, size=config.frame_size, dims=config.action_dim)
    samples = [RobotDataset(toy_root, preparation)[position] for position in (0, 5)]
    message = "samples: expected history, present and future, got 1 time; change Preparation's window"
    with pytest.raises(ValueError, match=message):
        Collator(Processor(config, None))(samples)  # pyright: ignore[reportArgumentType]  # not reached
    with pytest.raises(ValueError, match=message):
        targets_of(default_collate(samples))
