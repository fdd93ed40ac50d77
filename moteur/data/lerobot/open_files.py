"""Least-recently-used cache of open files and decoded tables, safe with threads, forks and pickling."""

import os
import resource
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from threading import RLock
from typing import Any, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")
_OPEN_VIDEOS = 256  # some 0.9 MiB each at 224x224, 1.9 MiB at 512x512


class BoundedCache:
    """Least-recently-used cache with a budget, which starts empty in every process.

    A pickled copy (a spawned loader worker) and a forked process start with nothing, because open video decoders cannot
    be shared between processes. Threads use the cache one at a time. One cache may serve many sets.

    Args:
        budget: Largest total cost to keep, at least 1. A single value that costs more is kept alone, until the next.

    Examples:
        >>> cache = BoundedCache(budget=2)
        >>> [cache.get(key, lambda key=key: key.upper()) for key in "abca"]
        ['A', 'B', 'C', 'A']
        >>> len(cache)
        2
    """

    def __init__(self, budget: int) -> None:
        if budget < 1:
            raise ValueError(f"budget: expected at least 1, got {budget}")
        self.budget = budget
        self._start()

    def get(self, key: Hashable, build: Callable[[], Value], cost: Callable[[Value], int] = lambda _: 1) -> Value:
        """Return the value under `key`, made by `build` if it is not here; `cost` says what keeping it costs."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            if key in self._entries:
                return self._entries[key][0]
            value = build()
            size = min(cost(value), self.budget)
            while self._entries.currsize + size > self.budget:
                _close(self._entries.popitem()[1][0])
            self._entries[key] = value, size
            return value

    @contextmanager
    def borrow(self, key: Hashable, build: Callable[[], Value]) -> Generator[Value]:
        """Do as `get`, and keep other threads out of the cache while the value is in use."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            yield self.get(key, build)

    def clear(self) -> None:
        """Drop everything, closing what can be closed."""
        if self._process == os.getpid():
            with self._lock:
                for value, _ in self._entries.values():
                    _close(value)
        self._start()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, int]:
        return {"budget": self.budget}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["budget"])

    def _start(self) -> None:
        self._entries: LRUCache[Hashable, tuple[Any, int]] = LRUCache(self.budget, getsizeof=lambda entry: entry[1])
        self._lock, self._process = RLock(), os.getpid()


def _close(value: object) -> None:
    close = getattr(value, "close", None)
    if callable(close):
        close()


def open_video_limit() -> int:
    """Number of videos to keep open: 256, or a quarter of the files that the process may open where that is less."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _OPEN_VIDEOS if files == resource.RLIM_INFINITY else max(1, min(_OPEN_VIDEOS, files // 4))
