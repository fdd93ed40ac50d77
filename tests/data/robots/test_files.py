"""Files that are whole whatever happens to the process, and the decoder that reads a set's videos."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moteur.data import (
    FieldStatistics,
    Preparation,
    Robot,
    RobotDataset,
    RobotStatistics,
    Window,
    available_backends,
    files,
)

# Each step at which the process can die, in a child of one process, as importing torch takes seconds.
PROGRAM = """
import os, sys
from dataclasses import replace
from pathlib import Path
from moteur.data import ROBOTS, FieldStatistics, RobotStatistics

def dying(call, left):
    def wrapped(*args):
        if not left:
            os._exit(9)
        left.pop()
        return call(*args)
    return wrapped

field = FieldStatistics(9, (2.0,), (1.0,), (0.0,), (5.0,))
new = {"robot.yaml": replace(ROBOTS["aloha"], name="new"), "stats.json": RobotStatistics("new", 4, field, field)}
for folder in sys.argv[1:]:
    for name, value in new.items():
        child = os.fork()
        if child == 0:
            left = [None] * int(Path(folder).name)
            for call in ("fsync", "replace"):
                setattr(os, call, dying(getattr(os, call), left))
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
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
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


def watching(golden: Path) -> tuple[Path, Preparation]:
    """The golden set's video of one camera, and nothing else."""
    robot = Robot("top", (), (), ("observation.images.top",))
    nothing = RobotStatistics("top", 50, FieldStatistics(0, (), (), (), ()), None)
    return golden / "lerobot_v21/dataset", Preparation(robot, nothing, window=Window(frames=(-2, 0, 2)), size=128)


def test_the_video_backend_is_the_one_that_is_asked_for(golden: Path) -> None:
    root, preparation = watching(golden)
    chosen = RobotDataset(root, preparation, backend="pyav")
    assert chosen.source.backend == "pyav"
    assert torch.equal(chosen[7]["images"], RobotDataset(root, preparation)[7]["images"])
    if "torchcodec" not in available_backends():
        with pytest.raises(ValueError, match=r"backend: expected one of \('pyav',\), which work here, got 'torchcodec'"):
            RobotDataset(root, preparation, backend="torchcodec")[7]


def test_the_samples_of_the_present_are_the_same_with_one_frame_and_read_alike(golden: Path) -> None:
    root, preparation = watching(golden)
    whole = RobotDataset(root, preparation, episodes=range(1), backend="pyav")
    present = whole.of_the_present()
    assert len(present) == len(whole)
    assert present.source.backend == "pyav"
    assert torch.equal(present[7]["images"], whole[7]["images"][:, 1:2])
    assert whole.preparation.window == Window(frames=(-2, 0, 2))  # the original keeps its own
