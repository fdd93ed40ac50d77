"""A least-recently-used cache with a budget, private to each process."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Value = TypeVar("Value")


class BoundedCache:
    """Keeps the values used last, up to a total cost, and drops the rest.

    The cache travels empty: a pickled copy (a spawned loader worker) and a forked process start with nothing, because
    neither an open video decoder nor its file position can be shared between processes. One cache may serve many sets.

    Args:
        budget: Largest total cost to keep. A single value that costs more is kept alone, until the next one.

    Raises:
        ValueError: The budget is not positive.

    Example:
        >>> cache = BoundedCache(budget=2)
        >>> [cache.get(key, lambda key=key: key.upper()) for key in "abca"]
        ['A', 'B', 'C', 'A']
        >>> len(cache)
        2
    """

    def __init__(self, budget: int) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, got {budget}")
        self.budget = budget
        self._reset()

    def get(self, key: Hashable, build: Callable[[], Value], cost: Callable[[Value], int] = lambda _: 1) -> Value:
        """Return the value under `key`, made by `build` if it is not here; `cost` says what keeping it costs."""
        if self._process != os.getpid():
            self._reset()
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        value = build()
        price = cost(value)
        while self._entries and self.spent + price > self.budget:
            _, (dropped, refund) = self._entries.popitem(last=False)
            self.spent -= refund
            _close(dropped)
        self._entries[key] = (value, price)
        self.spent += price
        return value

    def clear(self) -> None:
        """Drop everything, closing what can be closed."""
        if self._process == os.getpid():
            for value, _ in self._entries.values():
                _close(value)
        self._reset()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, int]:
        return {"budget": self.budget}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.budget = state["budget"]
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.spent = 0


def _close(value: object) -> None:
    close = getattr(value, "close", None)
    if callable(close):
        close()
