"""Interleaving of streams, datasets that can only be read from their beginning, in the proportions of an order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from moteur.sampling.sampler import Order, Sampler, named, opener

_END = object()


@runtime_checkable
class Stateful(Protocol):
    """Stream that can say where it is: iterating after `load_state_dict` goes on from there."""

    def state_dict(self) -> Any:  # noqa: ANN401  # whatever the stream saves
        """State after the last sample that was taken."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:  # noqa: ANN401  # whatever the stream saves
        """Continue from a saved state."""
        ...


class Interleave:
    """Samples of several streams, interleaved as an order draws their names; resumable.

    A stream is an iterable without a subscript: a webdataset, a generator's class, another iterable dataset. Its
    samples come one after the other; the frame numbers that the order draws play no part, so the order may be given any
    number of frames, such as 1. A stream is begun when it is first drawn, and begun again when it ends. Iterating stops
    with the epoch of the order, and iterating again goes on with the next.

    Streams shard themselves: give all ranks an order with `ranks=1`. An order of several ranks leaves each of them some
    of the streams only, and of these a stream that shards itself would read a part.

    `torch.utils.data.DataLoader` takes a class with the bases `Interleave` and `IterableDataset`.

    Args:
        order: `EpochOrder`, `WeightedOrder` or your own, as for a `Sampler`.
        streams: Function that opens a stream by its name, or a mapping of streams.
        name_key: Key under which every sample, a mapping, gets the name of its stream. `None` hands samples out as they
            are.

    Attributes:
        sampler: The sampler that chooses the streams; it knows epoch, length and samples consumed.

    Raises:
        ValueError: `streams` is neither; or, while iterating, a stream is empty, or `name_key` is given and a sample is
            no mapping or has that key already.

    Examples:
        >>> from moteur.sampling import WeightedOrder
        >>> streams, weights = {"robots": "abcdef", "video": "xyz"}, {"robots": 0.75, "video": 0.25}
        >>> order = WeightedOrder(dict.fromkeys(streams, 1), weights, draws=8)
        >>> mixed = Interleave(order, streams)
        >>> "".join(mixed)
        'xabyczde'
        >>> again = Interleave(order, streams)
        >>> again.load_state_dict(mixed.state_dict())
        >>> list(again) == list(mixed)
        True
    """

    def __init__(
        self,
        order: Order,
        streams: Callable[[str], Iterable[Any]] | Mapping[str, Iterable[Any]],
        *,
        name_key: str | None = None,
    ) -> None:
        self.sampler = Sampler(order)
        self._open, self._name_key = opener("streams", streams), name_key
        self._streams: dict[str, Iterable[Any]] = {}
        self._running: dict[str, Iterator[Any]] = {}
        self._taken: dict[str, int] = {}  # since the stream was last begun

    def __iter__(self) -> Iterator[Any]:
        for name, _ in self.sampler:
            sample = self._take(name)
            yield sample if self._name_key is None else named(sample, self._name_key, name)

    def state_dict(self) -> dict[str, Any]:
        """State after the last sample handed out: `version`, that of the `sampler`, and where each stream is.

        A stream with `state_dict` and `load_state_dict` is asked for its own; of any other the number of samples since
        it was last begun is saved.
        """
        streams = {
            name: {"state": stream.state_dict()} if isinstance(stream, Stateful) else {"taken": self._taken[name]}
            for name, stream in self._streams.items()
        }
        return {"version": 1, "sampler": self.sampler.state_dict(), "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state: the next sample is the one after the last handed out.

        Streams are opened again. One without a state of its own is read and dropped up to where it was: it has to give
        the same samples again. One with a state of its own that was first drawn after the state was saved starts where
        `streams` has it.

        Raises:
            ValueError: A state of another version or order, or of other streams: one that ends too early, or that has
                gained or lost a state of its own.
        """
        if state["version"] != 1:
            raise ValueError(f"state: expected version 1, got {state['version']}")
        self.sampler.load_state_dict(state["sampler"])
        for held in (self._streams, self._running, self._taken):
            held.clear()
        for name, saved in state["streams"].items():
            stream = self._stream(name)
            if isinstance(stream, Stateful) != ("state" in saved):
                kind = "with" if "state" in saved else "without"
                raise ValueError(f"state: expected a stream {name!r} {kind} a state of its own, got another one")
            if isinstance(stream, Stateful):
                stream.load_state_dict(saved["state"])
            self._begin(name)
            self._taken[name] = sum(1 for _ in islice(self._running[name], saved.get("taken", 0)))
            if self._taken[name] < saved.get("taken", 0):
                raise ValueError(
                    f"state: expected at least {saved['taken']} samples in the stream {name!r}, got {self._taken[name]}"
                )

    def __repr__(self) -> str:
        return f"Interleave({self.sampler!r}, {len(self._streams)} streams begun)"

    def _take(self, name: str) -> Any:  # noqa: ANN401  # whatever the stream holds
        sample = next(self._running.get(name, iter(())), _END)
        if sample is _END:  # it was not begun yet, or has ended
            self._begin(name)
            sample = next(self._running[name], _END)
        if sample is _END:
            raise ValueError(f"streams: expected samples each time {name!r} is iterated, got none")
        self._taken[name] += 1
        return sample

    def _begin(self, name: str) -> None:
        self._running[name], self._taken[name] = iter(self._stream(name)), 0

    def _stream(self, name: str) -> Iterable[Any]:
        if name not in self._streams:
            self._streams[name] = self._open(name)
        return self._streams[name]
