"""Statistics of a robot over LeRobot sets, in one pass and bounded memory."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt64
from tqdm import tqdm

from moteur.data.aloha import actions_to_pi, state_to_pi
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import Info
from moteur.data.lerobot.stats import QUANTILES
from moteur.data.robot import Robot, Source
from moteur.data.samples import Window
from moteur.data.statistics import FieldStatistics, RobotStatistics

BINS = 65_536
_SIGN = np.uint64(1 << 63)
_PENDING_ROWS = 65_536
_EPISODES_PER_TASK = 16
_Task = tuple[Path, tuple[int, ...]]
_Result = TypeVar("_Result")


class Distribution:
    """Running statistics of rows of numbers.

    Mean and variance are combined in float64 by Chan's update, so nothing cancels. Quantiles come from a histogram of
    each dimension, with at most `bins` bins (16 bytes each). A bin holds the numbers that agree in sign, exponent and
    the first $m$ bits after the leading one; $m$ is the largest for which the bins suffice, in each dimension.

    Quantiles interpolate between order statistics as `numpy.quantile` does, each order statistic cut to $m$ bits: off
    toward zero by less than $2^{-m}$ of its own size. They are exact up to `bins` distinct values. With 65,536 bins,
    $m$ is at least 10 (0.1 %) where the magnitudes span nine decades, and at least 6 (1.6 %) for any float32 numbers;
    11 (0.05 %) is usual.

    The order of `update` and `merge` changes moments by rounding only, and quantiles not at all.

    Args:
        dims: Dimensions of a row.
        bins: Largest number of bins of each dimension, at least 2.

    Examples:
        >>> left, right = Distribution(1), Distribution(1)
        >>> left.update(np.array([[1.0], [2.0]]))
        >>> right.update(np.array([[6.0]]))
        >>> left.merge(right)
        >>> left.mean.tolist(), left.quantiles([0.5]).tolist()
        ([3.0], [[2.0]])
    """

    def __init__(self, dims: int, *, bins: int = BINS) -> None:
        self.count, self.bins = 0, bins
        self.mean: Float64[np.ndarray, " dim"] = np.zeros(dims)
        self.min: Float64[np.ndarray, " dim"] = np.full(dims, np.inf)
        self.max: Float64[np.ndarray, " dim"] = np.full(dims, -np.inf)
        self.squares: Float64[np.ndarray, " dim"] = np.zeros(dims)
        self.histograms = [_counted(np.zeros(0)) for _ in range(dims)]
        self._pending: list[np.ndarray] = []

    @property
    def std(self) -> Float64[np.ndarray, " dim"]:
        """Standard deviation, dividing by the count."""
        return np.sqrt(self.squares / max(self.count, 1))

    def update(self, rows: Float[np.ndarray, "row dim"]) -> None:
        """Add rows of finite numbers."""
        if not np.isfinite(rows).all():
            raise ValueError(f"rows: expected finite numbers, got {int((~np.isfinite(rows)).sum())} that are not")
        if not len(rows):
            return
        wide = rows.astype(np.float64)
        mean = wide.mean(axis=0)
        self._combine(len(wide), mean, ((wide - mean) ** 2).sum(axis=0), wide.min(axis=0), wide.max(axis=0))
        self._pending.append(wide)
        if sum(len(batch) for batch in self._pending) >= _PENDING_ROWS:
            self.fold()

    def merge(self, other: "Distribution") -> None:
        """Add the rows that another distribution of the same dimensions and bins has seen."""
        self.fold()
        other.fold()
        if other.count:
            self._combine(other.count, other.mean, other.squares, other.min, other.max)
        pairs = zip(self.histograms, other.histograms, strict=True)
        self.histograms = [_merged(mine, theirs, self.bins) for mine, theirs in pairs]

    def fold(self) -> None:
        """Move pending rows into the histograms; without pending rows, the object is as small as it gets."""
        if self._pending:
            rows, self._pending = np.concatenate(self._pending), []
            parts = enumerate(self.histograms)
            self.histograms = [_merged(part, _counted(rows[:, dim]), self.bins) for dim, part in parts]

    def quantiles(self, points: Sequence[float]) -> Float64[np.ndarray, "point dim"]:
        """Quantiles at these fractions of the rows, of which there is at least one."""
        self.fold()
        position = np.asarray(points, dtype=np.float64) * (self.count - 1)
        low, high = np.floor(position).astype(np.int64), np.ceil(position).astype(np.int64)
        found = np.zeros((len(position), len(self.histograms)))
        for dim, part in enumerate(self.histograms):
            below, above = part.at(low), part.at(high)
            found[:, dim] = below + (above - below) * (position - low)
        return np.clip(found, self.min, self.max)

    def statistics(self, entries: tuple[str, ...] | None = None) -> FieldStatistics:
        """Statistics of the rows so far; `entries` says what each dimension is."""
        points = self.quantiles(list(QUANTILES.values()))
        return FieldStatistics(
            self.count,
            *(tuple(values.tolist()) for values in (self.mean, self.std, self.min, self.max)),
            **{name: tuple(row.tolist()) for name, row in zip(QUANTILES, points, strict=True)},
            entries=entries,
        )

    def _combine(self, count: int, mean: np.ndarray, squares: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        total, difference = self.count + count, mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + squares + difference**2 * (self.count * (count / total))
        self.min, self.max = np.minimum(self.min, low), np.maximum(self.max, high)
        self.count = total


@dataclass(frozen=True)
class _Histogram:
    """Counts of numbers in ascending order.

    A float64 becomes an unsigned integer of the same order: the sign bit flipped for positive numbers, all bits for
    negative ones. A key is that integer without its `shift` lowest bits.
    """

    keys: UInt64[np.ndarray, " bin"]
    counts: Int64[np.ndarray, " bin"]
    shift: int

    def at(self, ranks: Int64[np.ndarray, " rank"]) -> Float64[np.ndarray, " rank"]:
        """The numbers of these ranks, 0 being the smallest; the end of the bin that is nearer to zero."""
        keys = self.keys[np.searchsorted(np.cumsum(self.counts), ranks, side="right")]
        shift = np.uint64(self.shift)
        smallest = keys << shift
        largest = smallest | ((np.uint64(1) << shift) - np.uint64(1))
        return np.where(smallest & _SIGN, smallest ^ _SIGN, ~largest).view(np.float64)


def _counted(values: Float64[np.ndarray, " value"]) -> _Histogram:
    bits = (values + 0.0).view(np.uint64)  # adding zero turns -0.0 into 0.0
    keys, counts = np.unique(np.where(bits & _SIGN, ~bits, bits | _SIGN), return_counts=True)
    return _Histogram(keys, counts, 0)


def _merged(first: _Histogram, second: _Histogram, bins: int) -> _Histogram:
    """Add two histograms. The shift is the smallest that fits, so the order of additions does not matter."""
    shift = max(first.shift, second.shift)
    keys = np.concatenate([part.keys >> np.uint64(shift - part.shift) for part in (first, second)])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], np.concatenate([first.counts, second.counts])[order]
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    while len(starts) > bins:
        shift, keys = shift + 1, keys >> np.uint64(1)
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return _Histogram(keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts, shift)


def compute_statistics(
    sets: Path | str | Sequence[Path | str],
    robot: Robot,
    *,
    episodes: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
    chunk: int = Window.chunk,
    workers: int = 0,
    progress: bool = True,
) -> RobotStatistics:
    """Compute a robot's statistics over sets, in one pass.

    They are over exactly what training supervises: the state at every frame, and every step of every action chunk that
    lies inside its episode, relative where the schema says so. Leave out the episodes that are kept for validation.

    Counts, moments and extremes are exact to rounding. Quantiles are exact up to 65,536 distinct values of a dimension;
    beyond, they are off toward zero by 0.05 % of their size as a rule, and by 1.6 % at most. The
    result does not depend on the number of workers.

    Args:
        sets: Folders of sets recorded with this robot, or one of them.
        robot: Its schema, checked against each set.
        episodes: Numbers of the episodes to use. For one folder: its numbers; for several: for each its numbers, or
            None for all of them. Default: all.
        chunk: Length of the action chunks.
        workers: Processes to use; 0 for this one. They are spawned: call this under `if __name__ == "__main__":`.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: A folder is not a set.
        ValueError: There are no episodes, or the chunk is empty; or a set does not fit the schema, lacks an episode, or
            holds numbers that are not finite.
    """
    alone = isinstance(sets, Path | str)
    roots = [Path(root) for root in ([sets] if alone else sets)]
    chosen: Sequence[Any] = [None] * len(roots) if episodes is None else [episodes] if alone else episodes
    if len(chosen) != len(roots):
        raise ValueError(f"episodes: expected an entry for each of the {len(roots)} sets, got {len(chosen)}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    try:
        tasks = [task for root, numbers in zip(roots, chosen, strict=True) for task in _tasks(root, robot, numbers)]
        if not tasks:
            raise ValueError(f"sets: expected at least one episode, got none in {[str(root) for root in roots]}")
        state, action = Distribution(robot.state_dim), Distribution(robot.action_dim)
        work = partial(_collect, robot=robot, chunk=chunk)
        parts = _in_processes(work, tasks, workers) if workers else starmap(work, tasks)
        for part in tqdm(parts, total=len(tasks), desc="statistics", disable=not progress, unit="batch"):
            state.merge(part[0])
            action.merge(part[1])
    finally:
        _opened.cache_clear()  # a set may have grown by the next call
    actions = action.statistics(robot.action_entries) if robot.action else None
    return RobotStatistics(robot.name, chunk, state.statistics(robot.state_entries), actions)


def _tasks(root: Path, robot: Robot, chosen: Sequence[int] | None) -> list[_Task]:
    robot.check(Info.load(root), root)
    known = range(len(_opened(root, robot).index))
    numbers = list(known if chosen is None else chosen)
    if not set(numbers) <= set(known) or len(set(numbers)) < len(numbers):
        raise ValueError(f"episodes: expected some of the {len(known)} of {root}, each once, got {numbers!r:.200}")
    starts = range(0, len(numbers), _EPISODES_PER_TASK)
    return [(root, tuple(numbers[at : at + _EPISODES_PER_TASK])) for at in starts]


@lru_cache(maxsize=1)
def _opened(root: Path, robot: Robot) -> LeRobotSet:
    """The set that this process reads. Tasks come set by set, so each process opens each set once."""
    return LeRobotSet(root, keys=[source.key for source in (*robot.state, *robot.action)])


def _collect(root: Path, episodes: tuple[int, ...], *, robot: Robot, chunk: int) -> tuple[Distribution, Distribution]:
    dataset = _opened(root, robot)
    pair = Distribution(robot.state_dim), Distribution(robot.action_dim)
    for episode in episodes:
        for distribution, rows in zip(pair, _episode_rows(dataset, robot, episode, chunk), strict=True):
            try:
                distribution.update(rows)
            except ValueError as error:
                raise ValueError(f"{root}, episode {episode}: {error}") from error
    for distribution in pair:
        distribution.fold()  # before it is sent
    return pair


def _episode_rows(
    dataset: LeRobotSet, robot: Robot, episode: int, chunk: int
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
    if robot.adapt_to_pi:
        state = state_to_pi(torch.from_numpy(state)).numpy()
        action = actions_to_pi(torch.from_numpy(action)).numpy() if robot.action else action
    reference, relative = np.zeros_like(action), np.array(robot.relative_mask, dtype=bool)
    reference[:, relative] = state[:, np.flatnonzero(relative)]
    chunks = [action[step:] - reference[: length - step] for step in range(min(chunk, length))]
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
