"""Work shared among spawned processes: results in order, few ahead, and no process outlives the one that asked."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_processes(work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """Results of `work(*task)` in the order of the tasks; at most two for each process are running or waiting."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        yield from few_ahead(pool, work, tasks, ahead=2 * workers)


def few_ahead(
    pool: Executor, work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], *, ahead: int
) -> Iterator[Result]:
    """Results in order. `Executor.map` would submit everything, and keep all that is done before it is asked for."""
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, *task))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def end_with_parent() -> None:
    """Watch for the end of the parent, however it ends; a pool's process would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent is for a process that multiprocessing started")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
