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
        open_dataset: Opens the dataset of a name; `datasets.__getitem__` for a dict of open ones. To be sent to spawned
            loader processes it must be picklable: an object of a class of yours, `functools.partial`, not a lambda.
        keep: Most datasets to have open at once, in each process; of more, the one used longest ago is dropped, and
            opened again when it is asked for again. None: all.

    Raises:
        ValueError: None may be kept.

    Examples:
        >>> pool = Pool({"a": "xyz", "b": "uvw"}.__getitem__)
        >>> pool["b", 1]
        'v'
    """

    def __init__(self, open_dataset: Callable[[str], MapStyle], *, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep: expected at least 1 or None, got {keep}")
        self._open_dataset, self._keep = open_dataset, keep
        self._opened: dict[str, MapStyle] = {}

    def __getitem__(self, item: tuple[str, int]) -> Any:  # noqa: ANN401 - a sample is whatever the dataset holds
        name, frame = item
        dataset = self._opened.pop(name, None)
        if dataset is None:
            if len(self._opened) == self._keep:
                del self._opened[next(iter(self._opened))]
            dataset = self._open_dataset(name)
        self._opened[name] = dataset  # back in as the last: dicts keep their order
        return dataset[frame]

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the datasets open in this process, the one used last at the end."""
        return tuple(self._opened)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}
