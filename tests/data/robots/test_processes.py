"""Work in processes: in order, not far ahead, and over when the one that asked is gone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from moteur.data import processes

# A copy of the module alone, as its package imports torch, which takes seconds in each process.
PROGRAM = """
import os, time
import processes

def name(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    for place, worker in enumerate(processes.in_processes(name, [(0.05,)] * 8 + [(600,)] * 2, 2)):
        print(worker, flush=True)
"""


class Recorder(Executor):
    """Does nothing with a task but remember it until it is told to."""

    def __init__(self) -> None:
        self.submitted: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        self.submitted.append(future)
        return future


def test_results_come_in_order_and_only_a_few_tasks_are_submitted_ahead() -> None:
    pool = Recorder()
    tasks = [(base, 2) for base in range(20)]
    results = processes.few_ahead(pool, pow, tasks, ahead=4)
    for place, result in enumerate(results):
        assert result == place**2
        assert len(pool.submitted) == min(max(place + 4, 4), 20)


def test_what_was_not_started_is_cancelled_when_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Recorder()
    waiting: list[Future[Any]] = [Future() for _ in range(3)]
    waiting[0].set_exception(ValueError("damaged"))
    left = iter(waiting)

    def submit(*_: object) -> Future[Any]:
        return next(left)

    monkeypatch.setattr(pool, "submit", submit)
    with pytest.raises(ValueError, match="damaged"):
        list(processes.few_ahead(pool, pow, [(1, 1)] * 3, ahead=3))
    assert [future.cancelled() for future in waiting] == [False, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_when_the_one_that_asked_is_killed(tmp_path: Path) -> None:
    shutil.copy(processes.__file__, tmp_path / "processes.py")
    (tmp_path / "program.py").write_text(PROGRAM)
    parent = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()) for _ in range(8)}
    assert all(Path(f"/proc/{worker}").exists() for worker in workers)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 5
    while any(running(worker) for worker in workers) and time.monotonic() < end:
        time.sleep(0.02)
    left = [worker for worker in workers if running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def running(process: int) -> bool:
    """Whether it is there and more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
