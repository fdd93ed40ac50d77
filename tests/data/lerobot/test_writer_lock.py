"""A set has one writer at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_set import FEATURES, FPS, frame, record, record_more

from moteur.data import LeRobotSet, LeRobotWriter

REFUSED = "root: expected one writer at a time, got .*, which another LeRobotWriter has open"
TESTS = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from toy_set import FEATURES, FPS, record_more
from moteur.data import LeRobotWriter

writer = LeRobotWriter(Path(sys.argv[1]), fps=FPS, features=FEATURES, codec="libx264")
record_more(writer)
print("recorded", flush=True)
time.sleep(600)
"""


def writer_of(root: Path, *, resume: bool = True) -> LeRobotWriter:
    return LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264", resume=resume)


def test_a_second_writer_is_refused_and_the_first_loses_nothing(tmp_path: Path) -> None:
    with writer_of(tmp_path, resume=False) as first:
        record_more(first)
        first.add(frame(1, 0), "place")
        with pytest.raises(ValueError, match=REFUSED):
            writer_of(tmp_path)
        first.save_episode()
    with writer_of(tmp_path) as second:
        record_more(second)
    assert LeRobotSet(tmp_path).index.length.tolist() == [4, 1, 6]
    assert not (tmp_path / ".recording").exists()


def test_a_writer_in_another_process_is_respected_until_it_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(  # noqa: S603  # our own script
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "recorded\n"
        with pytest.raises(ValueError, match=REFUSED):
            writer_of(tmp_path)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert (tmp_path / ".recording/lock").exists()
    with writer_of(tmp_path) as writer:
        record_more(writer)
    assert len(LeRobotSet(tmp_path).index) == 2
    assert not (tmp_path / ".recording").exists()


def test_a_writer_that_was_refused_or_forgotten_holds_nothing(tmp_path: Path) -> None:
    root = record(tmp_path / "set", lengths=(2,))
    with pytest.raises(ValueError, match="fps: expected 11 to continue the set, got 10"):
        LeRobotWriter(root, fps=11, features=FEATURES, codec="libx264", resume=True)
    assert not (root / ".recording").exists()
    writer = writer_of(root)
    del writer
    writer_of(root).close()


def test_a_closed_writer_stays_closed(tmp_path: Path) -> None:
    with writer_of(tmp_path, resume=False) as first:
        record_more(first)
    with writer_of(tmp_path) as second:
        first.close()
        for call in (first.save_episode, first.discard_episode, lambda: first.add(frame(0, 0), "pick")):
            with pytest.raises(ValueError, match="writer: expected an open one, got one that is closed"):
                call()
        record_more(second)
    assert len(LeRobotSet(tmp_path).index) == 2


def test_a_set_made_while_a_writer_waited_for_the_folder_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "meta").mkdir()
        (tmp_path / "meta/info.json").write_text("another's")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(
        ValueError, match=r"root: expected an empty folder, got .*, in which another writer has made a set"
    ):
        writer_of(tmp_path, resume=False)
    assert (tmp_path / "meta/info.json").read_text() == "another's"


def test_a_lock_file_that_its_holder_removes_meanwhile_is_not_taken_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, flock = writer_of(tmp_path, resume=False), fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.close()  # removes the file that the second has just opened
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match=REFUSED):
        writer_of(tmp_path)
    with writer_of(tmp_path) as second:
        assert (tmp_path / ".recording/lock").exists()
        with pytest.raises(ValueError, match=REFUSED):
            writer_of(tmp_path)
        record_more(second)
    assert not (tmp_path / ".recording").exists()


def test_a_file_system_without_locks_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(OSError, match=r"No locks available: .*\.recording/lock"):
        writer_of(tmp_path, resume=False)
