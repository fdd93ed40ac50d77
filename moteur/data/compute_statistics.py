"""Computing a robot's statistics over any number of sets: one function, and one command.

python -m moteur.data --out franka.json SET [SET ...]
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import starmap
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from moteur.data.distribution import LIMIT, Distribution, Refinement
from moteur.data.known_robots import ROBOTS, find_robot
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import read_info
from moteur.data.processes import in_processes
from moteur.data.robot import Robot
from moteur.data.statistics import POINTS, RobotStatistics, finished
from moteur.data.window import episode_rows

_EPISODES_PER_TASK = 16
Task = tuple[Path, tuple[int, ...]]
Collected = TypeVar("Collected", Distribution, Refinement)
Pair = tuple[Collected, Collected]


def compute_statistics(
    sets: Sequence[Path | str],
    robot: Robot,
    *,
    episodes: Sequence[Sequence[int] | None] | None = None,
    steps: int = 50,
    workers: int = 0,
    limit: int = LIMIT,
    progress: bool = True,
) -> RobotStatistics:
    """Statistics of a robot over all windows of all sets, exactly the elements that training supervises.

    Give it the episodes that are trained on: what is learned from those kept for validation is no longer unseen.

    The first pass finds moments, extremes and counts of values. Where there were more distinct values than `limit`, a
    second pass reads the numbers again and looks up the few around each quantile. Everything but rounding of the
    moments is independent of the number of workers and the order of the sets.

    Args:
        sets: Folders of sets recorded with this robot.
        robot: Its schema, checked against each set.
        episodes: For each set the numbers of the episodes to use, or None for all of it; all of all sets if not given.
        steps: Length of the action chunks.
        workers: Processes to use; 0 for this one.
        limit: Entries to keep for each dimension, 16 bytes each, in each process.
        progress: Whether to draw progress bars.

    Raises:
        ValueError: There are no sets or no frames, a set does not fit the schema or lacks an episode, or holds values
            that are not finite; the robot has neither state nor actions; or chunks have no steps.
    """
    if not robot.state_dim + robot.action_dim:
        raise ValueError(f"robot: expected columns of a state or an action, got none in {robot.name!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    roots = [Path(root) for root in sets]
    chosen = [None] * len(roots) if episodes is None else list(episodes)
    if len(chosen) != len(roots):
        raise ValueError(f"episodes: expected an entry for each of the {len(roots)} sets, got {len(chosen)}")
    _opened.cache_clear()  # a set may have grown since the last call
    try:
        tasks = [task for root, numbers in zip(roots, chosen, strict=True) for task in _tasks(root, robot, numbers)]
        if not tasks:
            raise ValueError(f"sets must hold at least one episode, got {[str(root) for root in roots]}")
        return _collected(tasks, robot, steps=steps, workers=workers, limit=limit, progress=progress)
    finally:
        _opened.cache_clear()


def _collected(
    tasks: list[Task], robot: Robot, *, steps: int, workers: int, limit: int, progress: bool
) -> RobotStatistics:
    points = list(POINTS.values())
    survey = partial(_survey, robot=robot, steps=steps, limit=limit)
    state, action = Distribution(robot.state_dim, limit=limit), Distribution(robot.action_dim, limit=limit)
    for part in _each(survey, tasks, workers, "statistics" if progress else None):
        state.merge(part[0])
        action.merge(part[1])
    fine: Pair[Refinement] | None = None
    if state.needs_refinement(points) or action.needs_refinement(points):
        fine = state.refinement(points), action.refinement(points)
        refine = partial(_refine, robot=robot, steps=steps, empty=fine)
        for part in _each(refine, tasks, workers, "quantiles" if progress else None):
            fine[0].merge(part[0])
            fine[1].merge(part[1])
    states = finished(state, fine[0] if fine else None, robot.state_entries)
    actions = finished(action, fine[1] if fine else None, robot.action_entries) if robot.action else None
    return RobotStatistics(robot.name, steps, states, actions)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m moteur.data",
        description="Statistics of a robot's states and actions over LeRobot sets.",
    )
    parser.add_argument("sets", nargs="+", type=Path, help="folders of LeRobot sets")
    parser.add_argument(
        "--robot",
        help=f"a built-in robot ({', '.join(ROBOTS)}) or a schema file; the one that info.json names if absent",
    )
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument(
        "--episodes",
        action="append",
        type=_episode_numbers,
        metavar="RANGES",
        help="episodes to use, such as 0:80 or 0:40,50,60:80 (ends are left out) or all; once for each set, in order",
    )
    parser.add_argument("--steps", type=int, default=50, help="length of the action chunks")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for none beside this one")
    given = parser.parse_args(arguments)
    if given.robot is None:
        robot = _robot_of(given.sets[0])
    else:
        robot = ROBOTS[given.robot] if given.robot in ROBOTS else Robot.load(Path(given.robot))
    found = compute_statistics(given.sets, robot, episodes=given.episodes, steps=given.steps, workers=given.workers)
    found.save(given.out)


def _robot_of(root: Path) -> Robot:
    info = read_info(root)
    try:
        return find_robot(info.robot_type)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error


def _episode_numbers(text: str) -> list[int] | None:
    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, colon, end = part.partition(":")
        if not first.isdecimal() or (colon and not end.isdecimal()):
            raise argparse.ArgumentTypeError(f"expected ranges such as 0:40,50,60:80 or all, got {text!r}")
        numbers += range(int(first), int(end) if colon else int(first) + 1)
    return numbers


def _tasks(root: Path, robot: Robot, chosen: Sequence[int] | None) -> list[Task]:
    robot.check(read_info(root), root)
    known = range(len(_opened(root, _columns(robot)).index))
    numbers = list(known if chosen is None else chosen)
    unknown = sorted(set(numbers).difference(known))
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
    """The set that this process reads: tasks come set by set, so each process opens each set once a pass."""
    return LeRobotSet(root, keys=columns)


def _survey(root: Path, episodes: tuple[int, ...], *, robot: Robot, steps: int, limit: int) -> Pair[Distribution]:
    empty = Distribution(robot.state_dim, limit=limit), Distribution(robot.action_dim, limit=limit)
    return _fill(empty, root, episodes, robot, steps)


def _refine(
    root: Path, episodes: tuple[int, ...], *, robot: Robot, steps: int, empty: Pair[Refinement]
) -> Pair[Refinement]:
    return _fill((empty[0].emptied(), empty[1].emptied()), root, episodes, robot, steps)


def _fill(pair: Pair[Collected], root: Path, episodes: tuple[int, ...], robot: Robot, steps: int) -> Pair[Collected]:
    dataset = _opened(root, _columns(robot))
    for episode in episodes:
        rows = episode_rows(dataset, robot, episode, steps=steps)
        for collected, values in zip(pair, rows, strict=True):
            try:
                collected.update(values)
            except ValueError as error:
                raise ValueError(f"{root}, episode {episode}: {error}") from error
    for collected in pair:
        collected.fold()
    return pair


def _each(
    work: Callable[..., Pair[Collected]], tasks: list[Task], workers: int, title: str | None
) -> Iterator[Pair[Collected]]:
    bar = partial(tqdm, total=len(tasks), desc=title, disable=title is None, unit="batch")
    yield from bar(in_processes(work, tasks, workers) if workers else starmap(work, tasks))
