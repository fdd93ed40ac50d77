"""Statistics of a robot over LeRobot sets."""

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from moteur.data.distribution import Distribution
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import read_info
from moteur.data.robot import Robot, Source
from moteur.data.statistics import RobotStatistics, field_statistics

_EPISODES_PER_TASK = 16
_Task = tuple[Path, tuple[int, ...]]
_Pair = tuple[Distribution, Distribution]
_Result = TypeVar("_Result")


def compute_statistics(
    sets: Path | str | Sequence[Path | str],
    robot: Robot,
    *,
    episodes: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
    steps: int = 50,
    workers: int = 0,
    progress: bool = True,
) -> RobotStatistics:
    """Compute a robot's statistics over sets, in one pass.

    They are over exactly what training supervises: the state at every frame, and every step of every action chunk that
    lies inside its episode, relative where the schema says so. Leave out the episodes that are kept for validation.

    Counts, moments and extremes are exact to rounding; quantiles have the error that `Distribution` states. The result
    does not depend on the number of workers.

    Args:
        sets: Folders of sets recorded with this robot, or one of them.
        robot: Its schema, checked against each set.
        episodes: Numbers of the episodes to use. For one folder: its numbers; for several: for each its numbers, or
            None for all of them. Default: all.
        steps: Length of the action chunks.
        workers: Processes to use; 0 for this one. They are spawned: call this under `if __name__ == "__main__":`.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: A folder is not a set.
        ValueError: There are no episodes; a set does not fit the schema, lacks an episode, or holds a number that is
            not finite; the robot has neither state nor actions; or `steps` is below 1.
    """
    if not robot.state_dim + robot.action_dim:
        raise ValueError(f"robot: expected columns of a state or an action, got none in {robot.name!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    alone = isinstance(sets, Path | str)
    roots = [Path(root) for root in ([sets] if alone else sets)]
    chosen: Sequence[Any] = [None] * len(roots) if episodes is None else [episodes] if alone else episodes
    if len(chosen) != len(roots):
        raise ValueError(f"episodes: expected an entry for each of the {len(roots)} sets, got {len(chosen)}")
    _opened.cache_clear()  # a set may have grown since the last call
    try:
        tasks = [task for root, numbers in zip(roots, chosen, strict=True) for task in _tasks(root, robot, numbers)]
        if not tasks:
            raise ValueError(f"sets: expected at least one episode, got none in {[str(root) for root in roots]}")
        state, action = Distribution(robot.state_dim), Distribution(robot.action_dim)
        work = partial(_collect, robot=robot, steps=steps)
        parts = _in_processes(work, tasks, workers) if workers else starmap(work, tasks)
        for part in tqdm(parts, total=len(tasks), desc="statistics", disable=not progress, unit="batch"):
            state.merge(part[0])
            action.merge(part[1])
    finally:
        _opened.cache_clear()
    actions = field_statistics(action, robot.action_entries) if robot.action else None
    return RobotStatistics(robot.name, steps, field_statistics(state, robot.state_entries), actions)


def _tasks(root: Path, robot: Robot, chosen: Sequence[int] | None) -> list[_Task]:
    robot.check(read_info(root), root)
    known = range(len(_opened(root, _columns(robot)).index))
    numbers = list(known if chosen is None else chosen)
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise ValueError(f"episodes: expected numbers of the {len(known)} episodes of {root}, got {unknown[:8]}")
    repeated = [number for number, count in Counter(numbers).items() if count > 1]
    if repeated:
        raise ValueError(f"episodes: expected each episode of {root} once, got {repeated[:8]} more than once")
    starts = range(0, len(numbers), _EPISODES_PER_TASK)
    return [(root, tuple(numbers[at : at + _EPISODES_PER_TASK])) for at in starts]


def _columns(robot: Robot) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source.key for source in (*robot.state, *robot.action)))


@lru_cache(maxsize=1)
def _opened(root: Path, columns: tuple[str, ...]) -> LeRobotSet:
    """The set that this process reads. Tasks come set by set, so each process opens each set once."""
    return LeRobotSet(root, keys=columns)


def _collect(root: Path, episodes: tuple[int, ...], *, robot: Robot, steps: int) -> _Pair:
    dataset = _opened(root, _columns(robot))
    pair = Distribution(robot.state_dim), Distribution(robot.action_dim)
    for episode in episodes:
        for distribution, rows in zip(pair, _episode_rows(dataset, robot, episode, steps), strict=True):
            try:
                distribution.update(rows)
            except ValueError as error:
                raise ValueError(f"{root}, episode {episode}: {error}") from error
    for distribution in pair:
        distribution.fold()  # before it is sent
    return pair


def _episode_rows(
    dataset: LeRobotSet, robot: Robot, episode: int, steps: int
) -> tuple[Float64[np.ndarray, "frame state"], Float64[np.ndarray, "row action"]]:
    """Every state of an episode, and every step of every action chunk that lies inside it."""
    length = int(dataset.index.length[episode])

    def joined(sources: tuple[Source, ...]) -> Float64[np.ndarray, "frame dim"]:
        columns = [dataset.column(source.key, episode).reshape(length, -1) for source in sources]
        parts = [
            column[:, source.start : source.start + source.size].astype(np.float64)
            for source, column in zip(sources, columns, strict=True)
        ]
        return np.concatenate(parts, axis=1) if parts else np.zeros((length, 0))

    state, action = joined(robot.state), joined(robot.action)
    reference, relative = np.zeros_like(action), np.array(robot.relative_mask, dtype=bool)
    reference[:, relative] = state[:, np.flatnonzero(relative)]
    chunks = [action[step:] - reference[: length - step] for step in range(min(steps, length))]
    return state, np.concatenate(chunks)


def _in_processes(work: Callable[..., _Result], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[_Result]:
    """Results of the tasks in their order. At most two tasks a process are under way: results are large."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    waiting: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, *task))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent does, even if that is killed; it would wait for the next task forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
