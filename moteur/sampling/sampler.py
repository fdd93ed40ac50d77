"""Resumable sampler for a data loader, and the datasets that it reads from."""

from collections.abc import Callable, Iterator, Mapping, Sized
from itertools import accumulate
from numbers import Integral
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096

Opened = TypeVar("Opened")


@runtime_checkable
class Order(Protocol):
    """Pure function from epoch and position to dataset and frame: `EpochOrder`, `WeightedOrder` or your own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the datasets; `draw` returns places in here."""
        ...

    @property
    def length(self) -> int | None:
        """Positions in an epoch; `None` for one endless epoch."""
        ...

    @property
    def fingerprint(self) -> int:
        """Number that differs between orders that draw differently; equal on all ranks."""
        ...

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch."""
        ...


class Sampler:
    """Resumable sampler over an order.

    Iterating yields pairs (dataset name, frame number) to the end of the epoch, or the numbers that a concatenation of
    the datasets takes. Iterating again gives the next epoch; an endless order never stops. Pass it to
    `torch.utils.data.DataLoader` as `sampler`: indices are then made in the main process, so they do not depend on the
    number of loader workers.

    A `DataLoader` with workers asks for samples ahead of the training step. Only the training loop knows how many were
    used: pass that number to `state_dict(consumed=...)`. Left early and iterated again, it leaves out what it had asked
    for; `moteur.data.Loader` does not.

    Args:
        order: `EpochOrder`, `WeightedOrder`, or any object with their `names`, `length`, `fingerprint` and `draw`.
        concatenated: Lengths of the datasets by name, in the order in which they are concatenated: the sampler then
            yields numbers into `torch.utils.data.ConcatDataset`, and frame numbers if there is but one dataset. None
            for pairs, which a `DatasetPool` takes.

    Attributes:
        order: As given.
        consumed: Samples handed out since the very beginning, over all epochs.

    Raises:
        ValueError: `concatenated` lacks a dataset of the order, or has a length that is not an integer of at least 0;
            or, while iterating, the order draws a frame past the end of its dataset.

    Examples:
        >>> from moteur.sampling import EpochOrder
        >>> sampler = Sampler(EpochOrder({"a": 3}))
        >>> first_epoch, second_epoch = list(sampler), list(sampler)
        >>> sorted(first_epoch) == sorted(second_epoch) == [("a", 0), ("a", 1), ("a", 2)]
        True
        >>> sampler.load_state_dict({**sampler.state_dict(), "consumed": 2})
        >>> list(sampler) == first_epoch[2:]
        True
        >>> sorted(Sampler(EpochOrder({"a": 3, "b": 2}), concatenated={"b": 2, "a": 3}))
        [0, 1, 2, 3, 4]
    """

    def __init__(self, order: Order, *, concatenated: Mapping[str, int] | None = None) -> None:
        self.order = order
        self.consumed = 0
        self._places = None if concatenated is None else _Places(order.names, concatenated)

    @property
    def epoch(self) -> int:
        """Epoch of the next sample."""
        return 0 if self.order.length is None else self.consumed // self.order.length

    def __len__(self) -> int:
        if self.order.length is None:
            raise TypeError("an endless sampler has no length: give its order a number of draws")
        return self.order.length

    def __iter__(self) -> Iterator[Any]:
        names, length, epoch = self.order.names, self.order.length, self.epoch
        begin = epoch * length if length is not None else 0
        while length is None or self.consumed < begin + length:
            start = self.consumed - begin
            stop = start - start % _CHUNK + _CHUNK
            dataset, frame = self.order.draw(epoch, start, stop if length is None else min(stop, length))
            if self._places is None:
                items = zip(map(names.__getitem__, dataset.tolist()), frame.tolist(), strict=True)
            else:
                items = self._places.flat(dataset, frame).tolist()
            for item in items:
                self.consumed += 1
                yield item

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch.

        Raises:
            ValueError: An epoch other than 0 of an endless order, or one that is not an integer of at least 0.
        """
        epoch = _count("epoch", epoch)
        if epoch and self.order.length is None:
            raise ValueError(f"epoch: expected 0, the only one of an endless order, got {epoch}")
        self.consumed = epoch * (self.order.length or 0)

    def state_dict(self, *, consumed: int | None = None) -> dict[str, int]:
        """State to save in a checkpoint: `version`, `consumed`, `fingerprint`; the same on every rank.

        Args:
            consumed: Samples that this rank's training has used since the very beginning (steps × batch size, for
                example). Default: those handed out, which is more if a loader works ahead.

        Raises:
            ValueError: `consumed` is not an integer of at least 0.
        """
        done = self.consumed if consumed is None else _count("consumed", consumed)
        return {"version": 1, "consumed": done, "fingerprint": self.order.fingerprint}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a saved state: the next sample is the one after the last consumed.

        Raises:
            ValueError: A state of another version, or of an order with other datasets, weights, seed or rank count, or
                one whose `consumed` is not an integer of at least 0.
        """
        if (state["version"], state["fingerprint"]) != (1, self.order.fingerprint):
            raise ValueError(
                f"state: expected fingerprint {self.order.fingerprint} (datasets, ranges, weights, seed, number of "
                f"ranks and draws) of version 1, got {state['fingerprint']} of version {state['version']}: it was "
                "saved by a sampler that draws something else"
            )
        self.consumed = _count("consumed", state["consumed"])

    def __repr__(self) -> str:
        return f"Sampler({self.order!r}, epoch={self.epoch}, consumed={self.consumed:,})"


class _Places:
    """Where the datasets of an order begin and end in a concatenation."""

    def __init__(self, names: tuple[str, ...], concatenated: Mapping[str, int]) -> None:
        lengths = {name: _count(f"concatenated[{name!r}]", length) for name, length in concatenated.items()}
        if missing := sorted(set(names) - set(lengths)):
            raise ValueError(f"concatenated: expected the lengths of all datasets of the order, got none of {missing}")
        ends = dict(zip(lengths, accumulate(lengths.values()), strict=True))
        self._names = names
        self._length = np.array([lengths[name] for name in names])
        self._first = np.array([ends[name] for name in names]) - self._length

    def flat(self, dataset: NDArray[np.int64], frame: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers in the concatenation; a frame past the end of its dataset would be one of the next."""
        past = frame >= self._length[dataset]
        if past.any():
            place, number = int(dataset[past][0]), int(frame[past][0])
            raise ValueError(
                f"concatenated: expected more than {number} frames in {self._names[place]!r}, of which the order draws "
                f"frame {number}, got {self._length[place]}"
            )
        return self._first[dataset] + frame


def _count(name: str, value: int) -> int:
    """The value as a Python integer, if it is a whole number of at least 0."""
    if not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}")
    return int(value)


@runtime_checkable
class MapStyle(Protocol):
    """Map-style dataset: gives a sample for an index. Anything with a subscript will do, from a list on."""

    def __getitem__(self, index: Any, /) -> Any: ...  # noqa: ANN401  # samples and indices are whatever the dataset has


class DatasetPool:
    """Map-style dataset over several datasets, indexed by the pairs (dataset name, frame number) of a `Sampler`.

    Given a function, it opens a dataset on first access and keeps it open. Pickling drops the open datasets, so that
    every loader worker opens only what it reads. Given a mapping, its length is the number of all samples.

    Args:
        datasets: Function that opens a dataset by its name, or a mapping of open ones. To reach spawned loader workers
            it must be picklable: an object of a class of yours or `functools.partial`, not a lambda.
        max_open: Largest number of datasets open at once in each process. Beyond it the least recently used one is
            dropped, and opened again on the next access. `None` for no limit.
        name_key: Key under which every sample, a mapping, gets the name of its dataset, for example to choose
            statistics by. `None` hands samples out as they are.

    Raises:
        ValueError: `datasets` is neither, or `max_open` is below 1; or, on access, `name_key` is given and the sample
            is no mapping or has that key already.

    Examples:
        >>> pool = DatasetPool({"a": "xyz", "b": "uvw"})
        >>> pool["b", 1], len(pool)
        ('v', 6)
        >>> DatasetPool({"a": [{"x": 1}]}, name_key="dataset")["a", 0]
        {'x': 1, 'dataset': 'a'}
    """

    def __init__(
        self,
        datasets: Callable[[str], MapStyle] | Mapping[str, MapStyle],
        *,
        max_open: int | None = None,
        name_key: str | None = None,
    ) -> None:
        if max_open is not None and max_open < 1:
            raise ValueError(f"max_open: expected at least 1 or None, got {max_open}")
        self._datasets, self._open = datasets, opener("datasets", datasets)
        self._max_open, self._name_key = max_open, name_key
        self._opened: dict[str, MapStyle] = {}

    def __getitem__(self, item: tuple[str, int]) -> Any:  # noqa: ANN401  # a sample is whatever the dataset holds
        name, frame = item
        dataset = self._opened.pop(name, None)
        if dataset is None:
            if len(self._opened) == self._max_open:
                del self._opened[next(iter(self._opened))]
            dataset = self._open(name)
        self._opened[name] = dataset  # back in as the last: dicts keep their order
        return dataset[frame] if self._name_key is None else named(dataset[frame], self._name_key, name)

    def __len__(self) -> int:
        if not isinstance(self._datasets, Mapping):
            raise TypeError("a pool that opens its datasets has no length: ask its sampler")
        return sum(len(cast("Sized", dataset)) for dataset in self._datasets.values())

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the datasets open in this process, the most recently used last."""
        return tuple(self._opened)

    def __repr__(self) -> str:
        limit = "" if self._max_open is None else f" of at most {self._max_open}"
        return f"DatasetPool({len(self._opened)}{limit} datasets open)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}


def opener(argument: str, source: Callable[[str], Opened] | Mapping[str, Opened]) -> Callable[[str], Opened]:
    """The function that opens by name: the one given, or the look-up in a mapping."""
    if isinstance(source, Mapping):
        return source.__getitem__
    if not callable(source):
        raise ValueError(
            f"{argument}: expected a mapping, or a function that opens one by its name, got {type(source).__name__}"
        )
    return source


def named(sample: Any, key: str, name: str) -> dict[Any, Any]:  # noqa: ANN401  # whatever the dataset holds
    """A sample with the name of its dataset."""
    if not isinstance(sample, Mapping):
        raise ValueError(f"name_key: expected samples that are mappings, got {type(sample).__name__} from {name!r}")
    if key in sample:
        raise ValueError(f"name_key: expected a key that the samples of {name!r} lack, got {key!r}")
    return {**sample, key: name}
