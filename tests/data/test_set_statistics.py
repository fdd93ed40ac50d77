"""Statistics over sets, against loops over every frame and step."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moteur.data import (
    Feature,
    LeRobotSet,
    LeRobotWriter,
    Robot,
    RobotStatistics,
    Source,
    compute_statistics,
    set_statistics,
)
from moteur.data.lerobot import episodes

LENGTHS = [1 + 3 * number % 8 for number in range(40)]
STEPS = 4
ARM = Robot("arm", (Source("pose", 2),), (Source("target", 2),), ("eye",), relative=(1, -1))
FEATURES = {key: Feature("float32", (2,)) for key in ("pose", "target")} | {"eye": Feature("image", (4, 4, 3))}


def record(root: Path, lengths: Sequence[int], *, seed: int = 0, resume: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    with LeRobotWriter(root, fps=10, features=FEATURES, resume=resume) as writer:
        for length in lengths:
            for _ in range(length):
                numbers = {key: rng.normal(size=2) for key in ("pose", "target")}
                writer.add(numbers | {"eye": np.zeros((4, 4, 3), dtype=np.uint8)}, "reach")
            writer.save_episode()
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short episodes: more than one task of any process."""
    return record(tmp_path_factory.mktemp("many") / "set", LENGTHS)


def brute_force(root: Path, robot: Robot, chunk: int, numbers: Sequence[int] | None = None) -> list[np.ndarray]:
    """Every supervised element by two plain loops: the state at each frame, the real steps of each chunk."""
    items = [item for item in LeRobotSet(root) if numbers is None or int(item["episode_index"]) in numbers]

    def joined(item: dict[str, Any], sources: tuple[Source, ...]) -> np.ndarray:
        return np.concatenate([np.ravel(item[source.key]) for source in sources]).astype(np.float64)

    mask = np.array(robot.relative_mask)
    states, actions = [joined(item, robot.state) for item in items], []
    for now, item in enumerate(items):
        for later in items[now : now + chunk]:
            if later["episode_index"] == item["episode_index"]:
                actions += [joined(later, robot.action) - np.where(mask, states[now][: len(mask)], 0)]
    return [np.array(states), np.array(actions)]


def check(found: RobotStatistics, expected: Sequence[np.ndarray]) -> None:
    assert found.action is not None
    for field, rows in zip((found.state, found.action), expected, strict=True):
        assert field.count == len(rows)
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(field, name), getattr(rows, name)(axis=0), rtol=1e-10, atol=1e-10)
        for name, point in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
            np.testing.assert_allclose(getattr(field, name), np.quantile(rows, point, axis=0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 6, 50])
def test_statistics_equal_brute_force_over_the_supervised_elements(toy_root: Path, robot: Robot, chunk: int) -> None:
    found = compute_statistics(toy_root, robot, chunk=chunk, progress=False)
    check(found, brute_force(toy_root, robot, chunk))
    assert (found.robot, found.chunk) == ("toy", chunk)
    assert found.state.entries == robot.state_entries
    assert found.action is not None
    assert found.action.entries == robot.action_entries


def test_the_golden_aloha_set_has_relative_arms_and_absolute_grippers(golden: Path) -> None:
    root, aloha = golden / "lerobot_v30/dataset", Robot.known("aloha")
    assert aloha.relative_mask == (True,) * 6 + (False,) + (True,) * 6 + (False,)
    check(compute_statistics(root, aloha, progress=False), brute_force(root, aloha, 50))


def test_one_set_is_given_as_text_as_a_path_or_as_a_list(many: Path) -> None:
    given = [str(many), many, [str(many)], [many]]
    found = [compute_statistics(sets, ARM, chunk=STEPS, progress=False) for sets in given]
    assert found == [found[0]] * len(given)
    alone = compute_statistics(str(many), ARM, episodes=range(5), chunk=STEPS, progress=False)
    check(alone, brute_force(many, ARM, STEPS, range(5)))


def test_several_sets_count_as_one_and_processes_change_nothing(many: Path, tmp_path: Path) -> None:
    roots = [many, record(tmp_path / "other", [1, 3] * 10, seed=1)]
    alone = compute_statistics(roots, ARM, chunk=STEPS, progress=False)
    check(
        alone, [np.concatenate(rows) for rows in zip(*(brute_force(root, ARM, STEPS) for root in roots), strict=True)]
    )
    assert compute_statistics(roots, ARM, chunk=STEPS, workers=2, progress=False) == alone
    turned = compute_statistics(roots[::-1], ARM, chunk=STEPS, progress=False)
    assert turned.action is not None
    assert alone.action is not None
    assert turned.action.q50 == alone.action.q50
    np.testing.assert_allclose(turned.action.std, alone.action.std, rtol=1e-14)
    parts = [compute_statistics(root, ARM, chunk=STEPS, progress=False) for root in roots]
    np.testing.assert_allclose(RobotStatistics.merge(parts).state.std, alone.state.std, rtol=1e-12)


@pytest.mark.parametrize("chosen", [[3], list(range(32)), [39, 0, 17, 18]])
def test_statistics_of_chosen_episodes_are_those_of_a_pass_over_them(many: Path, chosen: list[int]) -> None:
    found = compute_statistics([many], ARM, episodes=[chosen], chunk=STEPS, progress=False)
    check(found, brute_force(many, ARM, STEPS, chosen))


def test_each_set_has_its_own_choice_and_none_is_all_of_it(many: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to(many)
    found = compute_statistics([many, tmp_path / "copy"], ARM, episodes=[None, range(5)], chunk=STEPS, progress=False)
    parts = brute_force(many, ARM, STEPS), brute_force(many, ARM, STEPS, range(5))
    check(found, [np.concatenate(pair) for pair in zip(*parts, strict=True)])


def test_data_without_actions_have_statistics_of_the_state_alone(toy_root: Path, robot: Robot) -> None:
    found = compute_statistics([toy_root], replace(robot, action=(), relative=()), progress=False)
    assert found.action is None
    assert found.state.dims == 3


def test_a_robot_without_a_state_has_statistics_of_its_actions(many: Path) -> None:
    found = compute_statistics([many], replace(ARM, state=(), relative=()), chunk=STEPS, progress=False)
    assert found.state.dims == 0
    assert found.action is not None
    assert found.action.dims == 2
    assert RobotStatistics.from_dict(found.to_dict()) == found


def test_progress_is_shown(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compute_statistics(many, ARM, chunk=STEPS)
    assert "statistics: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([[0, 40, -1]], r"episodes: expected some of the 40 of .*set, each once, got \[0, 40, -1\]"),
        ([[4, 5, 4]], r"episodes: expected some of the 40 of .*set, each once, got \[4, 5, 4\]"),
        ([[]], "sets: expected at least one episode, got none in "),
    ],
)
def test_a_choice_that_the_sets_do_not_hold_is_named(many: Path, chosen: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_statistics([many], ARM, episodes=chosen, progress=False)


def test_what_cannot_be_computed_is_named(toy_root: Path, golden: Path, robot: Robot) -> None:
    with pytest.raises(ValueError, match="sets: expected at least one episode, got none in "):
        compute_statistics([], ARM)
    with pytest.raises(ValueError, match=r"info.json does not fit robot 'toy'"):
        compute_statistics([toy_root, golden / "lerobot_v30/dataset"], robot, progress=False)


def test_values_that_are_not_finite_are_named_with_their_episode(tmp_path: Path) -> None:
    record(tmp_path / "set", [2])
    path = tmp_path / "set/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("pose")
    broken = pa.array([[0.0, float("nan")]] * 2, type=table["pose"].type)
    pq.write_table(table.set_column(column, "pose", broken), path)
    with pytest.raises(ValueError, match=r"set, episode 0: rows: expected finite numbers, got 2 that are not"):
        compute_statistics(tmp_path / "set", ARM, progress=False)


class Opens:
    """Counts sets that are opened, and files of their episode index that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sets, self.tables = 0, 0
        opened, read = set_statistics.LeRobotSet, episodes.read_table

        def open_set(*arguments: object, **named: object) -> LeRobotSet:
            self.sets += 1
            return opened(*arguments, **named)  # pyright: ignore[reportArgumentType]

        def read_table(*arguments: object, **named: object) -> object:
            self.tables += 1
            return read(*arguments, **named)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(set_statistics, "LeRobotSet", open_set)
        monkeypatch.setattr(episodes, "read_table", read_table)


def test_a_set_is_opened_once_however_many_episodes_it_has(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Opens(monkeypatch)
    compute_statistics(many, ARM, chunk=STEPS, progress=False)
    assert opens.sets == 1
    assert opens.tables == len(list(many.glob("meta/episodes/*/*.parquet")))  # each file once


def test_a_worker_process_opens_a_set_once_for_all_its_tasks(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Opens(monkeypatch)
    set_statistics._opened.cache_clear()
    work = partial(set_statistics._collect, robot=ARM, chunk=STEPS)
    for first in range(0, 40, 8):  # as a worker gets its tasks: the work comes pickled anew with each of them
        sent = pickle.loads(pickle.dumps((work, many, tuple(range(first, first + 8)))))  # noqa: S301 - our own
        sent[0](*sent[1:])
    assert opens.sets == 1


def test_a_set_that_has_grown_is_opened_anew(tmp_path: Path) -> None:
    for count in (3, 6):
        record(tmp_path / "set", [3], resume=count > 3)
        assert compute_statistics(tmp_path / "set", ARM, progress=False).state.count == count


class Recorder(Executor):
    """Carries out a task when it is submitted, and counts them."""

    submitted = 0

    def __init__(self, *_: object, **__: object) -> None:
        Recorder.submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        Recorder.submitted += 1
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_results_come_in_order_and_only_a_few_tasks_are_submitted_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_statistics, "ProcessPoolExecutor", Recorder)
    for place, result in enumerate(set_statistics._in_processes(pow, [(base, 2) for base in range(20)], 2)):
        assert result == place**2
        assert Recorder.submitted == min(place + 4, 20)


PROGRAM = """
import os, time
from moteur.data import set_statistics

def name(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    for worker in set_statistics._in_processes(name, [(0.05,)] * 8 + [(600,)] * 2, 2):
        print(worker, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_when_the_one_that_asked_is_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "program.py"]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
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
