"""What a set, a window or statistics are refused for, and that the message says which of 5,000 sets it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from moteur.recipes.robots import Preparation, Robot, RobotDataset, RobotStatistics, Window, compute_statistics
from moteur.recipes.robots.collect import main

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
