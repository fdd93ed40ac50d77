"""Batches in a sampler's order, made by worker processes."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.util import Finalize
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, default_collate

from moteur.data.loading.figures import Figures
from moteur.sampling import DatasetPool, Sampler

Batch = TypeVar("Batch")


class Loader(Generic[Batch]):
    """Hands out one epoch of batches each time it is iterated; an endless order makes one endless epoch.

    The order is drawn by the sampler in this process, before work is given to the workers. Neither their number nor
    their speed changes what comes, and resuming at a sample costs nothing: no worker has a state, and nothing is read
    twice. (torchdata's `StatefulDataLoader` keeps a state in each worker and so wants the same number of them.)

    Workers read ahead; the state knows only what has been handed out. Taken in the loop's body, it says that the batch
    of this turn is done. It is the same on every rank, and a few integers.

    Args:
        dataset: What the sampler's (name, frame) pairs are looked up in. It is sent to the workers, where datasets and
            files are opened when first needed.
        sampler: The order. Belongs to the loader from here on: it runs ahead of what has been handed out.
        batch_size: Samples in a batch; the last of an epoch may have fewer.
        collate: Makes a batch of a list of samples, in the worker.
        workers: Processes that read; 0 reads in this one, when asked.
        prefetch: Batches that each worker prepares ahead.
        pin: Copy batches into page-locked memory, from which a device takes them without waiting. None: when there is
            a CUDA device. Batches of own types need a method `pin_memory`.
        start_method: How workers start. Forking is quicker, and unsafe once CUDA or threads are in use.

    Raises:
        ValueError: A size that is too small.

    Examples:
        >>> from moteur.sampling import EpochOrder
        >>> loader = Loader(DatasetPool({"a": "wxyz"}), Sampler(EpochOrder({"a": 4})), batch_size=3, collate=list)
        >>> epoch = [batch for batch in loader]
        >>> [len(batch) for batch in epoch], sorted(epoch[0] + epoch[1])
        ([3, 1], ['w', 'x', 'y', 'z'])
        >>> loader.state_dict()["consumed"]
        4
    """

    def __init__(
        self,
        dataset: DatasetPool,
        sampler: Sampler,
        *,
        batch_size: int,
        collate: Callable[[list[Any]], Batch] = default_collate,  # pyright: ignore[reportArgumentType]  # its own type is unknown
        workers: int = 0,
        prefetch: int = 2,
        pin: bool | None = None,
        start_method: Literal["spawn", "fork", "forkserver"] = "spawn",
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("prefetch", prefetch, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.sampler, self.batch_size = sampler, batch_size
        self._consumed = sampler.consumed
        self._figures = Figures()
        several: dict[str, Any] = {}
        if workers:
            several = {
                "prefetch_factor": prefetch,
                "persistent_workers": True,
                "multiprocessing_context": start_method,
                "worker_init_fn": _begin_worker,
            }
        self._batches: DataLoader[Any] = DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]  # a subscript is all that is used
            batch_size,
            sampler=sampler,  # pyright: ignore[reportArgumentType]  # an iterable is all that is used
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            # Seeds the workers. Its own, so that iterating draws nothing from the training's random numbers.
            generator=torch.Generator().manual_seed(0),
            **several,
        )

    def __len__(self) -> int:
        """Batches in an epoch.

        Raises:
            TypeError: The order is endless.
        """
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.sampler.load_state_dict(self.state_dict())
        length = self.sampler.order.length
        mark = asked = perf_counter()
        for batch in self._batches:
            arrived = perf_counter()
            left = self.batch_size if length is None else length - self._consumed % length
            size = min(self.batch_size, left)
            self._consumed += size
            self._figures += Figures(size, arrived - mark, arrived - asked)
            mark = arrived
            yield batch
            asked = perf_counter()

    def take_figures(self) -> Figures:
        """Throughput and waiting since the last call. The first report includes the start of the workers."""
        figures, self._figures = self._figures, Figures()
        return figures

    def state_dict(self) -> dict[str, int]:
        """Where to go on: after the last batch that was handed out."""
        return self.sampler.state_dict(consumed=self._consumed)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where a state was taken; holds from the next iteration on.

        Raises:
            ValueError: The state is of another version, or of another order.
        """
        self.sampler.load_state_dict(state)
        self._consumed = state["consumed"]


def _begin_worker(worker: int) -> None:
    del worker
    # Workers share the cores among themselves; threads inside each would only fight over them.
    torch.set_num_threads(1)
    Finalize(None, _leave_worker, exitpriority=-100)  # after every other: queues wait for what they must deliver at -5


def _leave_worker() -> None:
    """End a worker without taking its interpreter apart, as forked processes end.

    A worker that is told to stop does not wait for the thread that still copies its last batch into shared memory. In a
    spawned process the interpreter would be finalized under that thread, which Python then ends in the middle of C++
    code; C++ answers with `terminate called without an active exception`, and the training process learns that a worker
    was killed.
    """
    if sys.exc_info()[0] is None:  # otherwise the process is about to tell what went wrong
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
