"""Files that are whole whatever happens to the process, and what is said about values that do not fit."""

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
import pytest
from pydantic import ConfigDict, Field, TypeAdapter

from moteur import files
from moteur.data import Robot, RobotStatistics, Source

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
    folders = [tmp_path / str(step) for step in range(4)]
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
    assert run.stdout.split() == ["9"] * 6 + ["0"] * 2
    names = [
        (Robot.load(folder / "robot.yaml").name, RobotStatistics.load(folder / "stats.json").robot)
        for folder in folders
    ]
    assert names == [("toy", "toy")] * 2 + [("new", "new")] * 2


def test_a_saved_file_and_then_its_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure the renamed file is there: its content was flushed before the rename, its name after it."""
    flushed: list[tuple[int, list[Path]]] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, sorted(tmp_path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noting)
    path = tmp_path / "robot.json"
    files.write_whole(path, "{}")
    (content, drafts), (folder, names) = flushed
    assert (content, folder) == (path.stat().st_ino, tmp_path.stat().st_ino)
    assert path not in drafts
    assert names == [path]


def test_drafts_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    """By locks: a process number may be another machine's, or that of a later process."""
    dead = [tmp_path / f".{name}.{os.getpid()}.part" for name in ("robot[1].json", "other.json")]
    for draft in dead:
        draft.write_text("half")
    living = tmp_path / ".robot[1].json.0.part"
    with living.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_whole(tmp_path / "robot[1].json", "{}")
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "robot[1].json", dead[1], living])
    files.remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "robot[1].json"]


def test_a_draft_is_safe_from_other_writers_from_its_first_byte_to_its_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others come at the two worst moments: before the draft is locked, and when it is complete."""
    flock, fsync, came = fcntl.flock, os.fsync, list[str]()

    def locking(file: int | IO[bytes], kind: int) -> None:
        if isinstance(file, int) and not came:
            came.append("early")
            files.remove_drafts(tmp_path)
            assert not list(tmp_path.iterdir())
        flock(file, kind)

    def flushing(descriptor: int) -> None:
        came.append("late")
        files.remove_drafts(tmp_path)
        fsync(descriptor)

    monkeypatch.setattr(files.fcntl, "flock", locking)
    monkeypatch.setattr(files.os, "fsync", flushing)
    files.write_whole(tmp_path / "a.json", "{}")
    assert came[:2] == ["early", "late"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


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


@dataclass(frozen=True)
class Square:
    side: int
    kind: Literal["Square"] = "Square"


@dataclass(frozen=True)
class Disc:
    radius: float
    kind: Literal["Disc"] = "Disc"


@dataclass(frozen=True)
class Picture:
    shapes: list[Annotated[Square | Disc, Field(discriminator="kind")]]
    corner: tuple[int, int] = (0, 0)
    names: dict[str, int] = field(default_factory=dict[str, int])


PICTURES = TypeAdapter(Picture | None, config=ConfigDict(extra="forbid"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shapes": [{"kind": "Disc", "radius": "1"}]}, r"shapes[0].radius: expected a number, got '1'"),
        ({"shapes": [{"kind": "Disc"}]}, "shapes[0].radius: expected a value, got none"),
        ({"shapes": [{"kind": "Star"}]}, "shapes[0].kind: expected one of 'Square', 'Disc', got 'Star'"),
        ({"shapes": [{"side": 2}]}, "shapes[0].kind: expected one of those known here, got None"),
        ({"shapes": [], "corner": [1]}, "corner[1]: expected a value, got none"),
        ({"shapes": [], "names": {"a b": 0.5}}, "names['a b']: expected an integer, got 0.5"),
        ({"shapes": [], "cornr": 0}, "cornr: unknown field, did you mean 'corner'?"),
        ({"shapes": 5}, "shapes: expected a list, got 5"),
        (5, "expected a mapping of fields, got 5"),
    ],
)
def test_a_mismatch_is_told_by_its_place_in_the_file(values: object, message: str) -> None:
    for where, begin in (("", ""), ("a.json", "a.json: ")):
        with pytest.raises(ValueError, match=r"expected|unknown") as caught:
            files.parse(PICTURES, values, where, strict=True)
        assert str(caught.value) == begin + message


def test_strict_values_are_converted_where_json_has_no_such_type() -> None:
    plain = {"shapes": [{"kind": "Disc", "radius": 1}], "corner": [1, 2]}
    assert files.parse(PICTURES, plain, strict=True) == Picture([Disc(1.0)], (1, 2))


def test_values_that_json_cannot_hold_are_refused() -> None:
    deep: list[object] = []
    for _ in range(20_000):
        deep = [deep]
    for values in (deep, {"shapes": {1, 2}}, {"shapes": [b"disc"]}):
        with pytest.raises(ValueError, match=r"^a.json: expected values that JSON can hold, got others"):
            files.parse(PICTURES, values, "a.json", strict=True)


@pytest.mark.usefixtures("without_shape_checks")
def test_numpys_integers_are_integers() -> None:
    robot = Robot("toy", (Source("joints", np.int64(2)),), (), ("head",))  # pyright: ignore[reportArgumentType]
    assert robot.state_dim == 2
