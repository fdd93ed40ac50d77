"""Text files that are whole whatever happens to the process."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moteur.data import Robot, RobotStatistics, files

# Each step at which the process can die, in a child of one process, as importing torch takes seconds.
PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
from moteur.data import FieldStatistics, Robot, RobotStatistics

def dying(call, left):
    def wrapped(*args):
        if not left:
            os._exit(9)
        left.pop()
        return call(*args)
    return wrapped

field = FieldStatistics(9, (2.0,), (1.0,), (0.0,), (5.0,))
new = {"robot.yaml": replace(Robot.known("aloha"), name="new"), "stats.json": RobotStatistics("new", 4, field, field)}
for folder in sys.argv[1:]:
    for name, value in new.items():
        child = os.fork()
        if child == 0:
            left = [None] * int(Path(folder).name)
            os.fsync, Path.replace = dying(os.fsync, left), dying(Path.replace, left)
            value.save(Path(folder, name))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(
    robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    folders = [tmp_path / str(step) for step in range(3)]
    for folder in folders:
        folder.mkdir()
        robot.save(folder / "robot.yaml")
        statistics.save(folder / "stats.json")
    run = subprocess.run(  # noqa: S603 - our own program text
        [sys.executable, "-c", PROGRAM, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["9"] * 4 + ["0"] * 2
    names = [
        (Robot.load(folder / "robot.yaml").name, RobotStatistics.load(folder / "stats.json").robot)
        for folder in folders
    ]
    assert names == [("toy", "toy"), ("toy", "toy"), ("new", "new")]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "robot.json"
    robot.save(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(robot, name="other").save(path)
    assert Robot.load(path) == robot
    assert list(tmp_path.iterdir()) == [path]


def test_saved_files_are_for_all_who_may_read_new_ones(
    robot: Robot, statistics: RobotStatistics, tmp_path: Path
) -> None:
    saves: dict[str, Callable[[Path], None]] = {"robot.yaml": robot.save, "stats.json": statistics.save}
    (tmp_path / "plain").write_text("")
    for name, save in saves.items():
        save(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
