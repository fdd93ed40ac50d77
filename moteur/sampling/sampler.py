"""Handing out an order one sample at a time, with a state of three integers."""

from collections.abc import Iterator
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096


@runtime_checkable
class Order(Protocol):
    """A pure function from epoch and position to dataset and frame: `WeightedOrder`, `EpochOrder`, or your own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the datasets that `draw`'s ids stand for."""
        ...

    @property
    def length(self) -> int | None:
        """Positions in an epoch; None: endless."""
        ...

    @property
    def fingerprint(self) -> int:
        """A number that differs between orders that draw differently; equal on all ranks."""
        ...

    def draw(self, epoch: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset ids and frame numbers at positions `start` to `stop` - 1 of an epoch."""
        ...


class SamplerState(TypedDict):
    """All there is to know for going on: a few integers, equal on all ranks."""

    version: int
    consumed: int
    fingerprint: int


class Sampler:
    """Walks along an order and remembers how far it came.

    Iterating yields pairs (dataset name, frame number) up to the end of the epoch, and goes on with the next epoch
    when iterated again; an endless order never stops. Give it to `torch.utils.data.DataLoader` as `sampler`: indices
    are then made in the main process, so the number of loader workers changes nothing.

    A DataLoader with workers asks for samples ahead of the training step. What the step has consumed is known to
    the training loop alone: hand it to `state_dict(consumed=...)`.

    Args:
        order: What to walk along.

    Examples:
        >>> from moteur.sampling import EpochOrder
        >>> sampler = Sampler(EpochOrder({"a": 3}))
        >>> first_epoch, second_epoch = list(sampler), list(sampler)
        >>> sorted(first_epoch) == sorted(second_epoch) == [("a", 0), ("a", 1), ("a", 2)]
        True
        >>> sampler.load_state_dict({**sampler.state_dict(), "consumed": 2})
        >>> list(sampler) == first_epoch[2:]
        True
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.consumed = 0
        """Samples handed out since the very beginning, all epochs together."""

    @property
    def epoch(self) -> int:
        """Epoch of the next sample."""
        return 0 if self.order.length is None else self.consumed // self.order.length

    def __len__(self) -> int:
        if self.order.length is None:
            raise TypeError("an endless sampler has no length: give its order a number of draws")
        return self.order.length

    def __iter__(self) -> Iterator[tuple[str, int]]:
        names, length, epoch = self.order.names, self.order.length, self.epoch
        begin = epoch * length if length is not None else 0
        while length is None or self.consumed < begin + length:
            start = self.consumed - begin
            stop = start - start % _CHUNK + _CHUNK
            dataset, frame = self.order.draw(epoch, start, stop if length is None else min(stop, length))
            for place, number in zip(dataset.tolist(), frame.tolist(), strict=True):
                self.consumed += 1
                yield names[place], number

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch.

        Raises:
            ValueError: A negative epoch, or any but 0 of an endless order.
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected at least 0, got {epoch}")
        if epoch and self.order.length is None:
            raise ValueError(f"epoch: expected 0, an endless order has no other, got {epoch}")
        self.consumed = epoch * (self.order.length or 0)

    def state_dict(self, *, consumed: int | None = None) -> SamplerState:
        """State to save in a checkpoint; the same on every rank.

        Args:
            consumed: Samples that this rank's training has used since the very beginning (steps times batch size, say).
                None: those handed out, which is more if a loader works ahead.

        Raises:
            ValueError: A negative number.
        """
        if consumed is not None and consumed < 0:
            raise ValueError(f"consumed: expected >= 0, got {consumed}")
        done = self.consumed if consumed is None else consumed
        return {"version": 1, "consumed": done, "fingerprint": self.order.fingerprint}

    def load_state_dict(self, state: SamplerState) -> None:
        """Go to where a state was taken: the next sample is the one after the last consumed.

        Raises:
            ValueError: A state of another version, or of an order with other datasets, weights, seed or rank count.
        """
        if state["version"] != 1:
            raise ValueError(f"state: expected version 1, got {state['version']}")
        if state["fingerprint"] != self.order.fingerprint:
            raise ValueError(
                f"state: expected fingerprint {self.order.fingerprint} (datasets, ranges, weights, seed, number of "
                f"ranks and draws), got {state['fingerprint']}: it was saved by a sampler that draws something else"
            )
        if state["consumed"] < 0:
            raise ValueError(f"state: expected consumed >= 0, got {state['consumed']}")
        self.consumed = state["consumed"]
