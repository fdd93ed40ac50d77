"""Several map-style datasets behind one subscript."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class MapStyle(Protocol):
    """Anything that gives a sample for a number."""

    def __getitem__(self, index: int, /) -> Any: ...  # noqa: ANN401 - a sample is whatever the dataset holds


class Pool:
    """Datasets that are opened when first asked for, and subscripted with the pairs that a `Sampler` yields.

    Loader processes open what they read themselves: what was opened before is left behind when a pool is sent to one.

    Args:
        open_dataset: Gives the dataset of a name; `datasets.__getitem__` for a dict of open ones.

    Examples:
        >>> pool = Pool({"a": "xyz", "b": "uvw"}.__getitem__)
        >>> pool["b", 1]
        'v'
    """

    def __init__(self, open_dataset: Callable[[str], MapStyle]) -> None:
        self._open_dataset = open_dataset
        self._opened: dict[str, MapStyle] = {}

    def __getitem__(self, item: tuple[str, int]) -> Any:  # noqa: ANN401 - a sample is whatever the dataset holds
        name, frame = item
        if name not in self._opened:
            self._opened[name] = self._open_dataset(name)
        return self._opened[name][frame]

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the datasets opened so far in this process."""
        return tuple(self._opened)

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_dataset": self._open_dataset, "_opened": {}}
