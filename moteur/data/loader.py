"""Batches in a sampler's order, made by worker processes, with resumption and throughput."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.util import Finalize
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, default_collate

from moteur.sampling import MapStyle, Sampler

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Throughput:
    """Samples, time, and how much of the time the training step waited for data.

    Attributes:
        samples: Samples handed out.
        seconds: Time from the request for the first batch to the arrival of the last.
        waited: Part of it, in seconds, in which no batch was ready when the training step asked for one.

    Examples:
        >>> print(Throughput(samples=640, seconds=10.0, waited=0.5))
        64.0 samples/s, 5.0 % of the time waiting for data
    """

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples per second; 0 before the first."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def wait_ratio(self) -> float:
        """Fraction of the time spent waiting: near 0 the model limits the speed, near 1 the data do.

        On an accelerator this is the time that the CPU waits. A loop that does not synchronise with the device asks for
        batches ahead of it, and the device may still be busy in that time.
        """
        return self.waited / self.seconds if self.seconds else 0.0

    def __add__(self, other: "Throughput") -> "Throughput":
        return Throughput(self.samples + other.samples, self.seconds + other.seconds, self.waited + other.waited)

    def __str__(self) -> str:
        return f"{self.samples_per_second:.1f} samples/s, {100 * self.wait_ratio:.1f} % of the time waiting for data"


class Loader(Generic[Batch]):
    """Data loader over a sampler's order, resumable at the exact sample.

    Each iteration gives one epoch; an endless order has one endless epoch. The order is drawn in this process before
    work is given to the workers, so neither their number nor their speed changes the batches. Workers have no state and
    read ahead; the loader's state counts only batches that were handed out. Taken in the body of the loop, it includes
    the current batch. It is a few integers, equal on every rank, and may be loaded with any number of workers.

    Args:
        dataset: Looked up with what the sampler yields: a `DatasetPool` with (name, frame) pairs, a single dataset or a
            `torch.utils.data.ConcatDataset` with the numbers of a sampler that is `concatenated`. It is sent to the
            workers, which open files when they first need them.
        sampler: The order. The loader moves it ahead of what was handed out, so nothing else should use it.
        batch_size: Samples per batch; the last batch of an epoch may have fewer. Of an order that makes batches of one
            set it divides the order's `batch_size`.
        collate: Makes a batch of a list of samples, in the worker.
        workers: Worker processes; 0 reads in this process.
        prefetch: Batches that each worker prepares ahead.
        pin: Copy batches to page-locked memory, from which copies to a device do not block. Default: if there is a CUDA
            device. Batches of your own types need a method `pin_memory`.
        start_method: How worker processes start. `"fork"` is faster, and unsafe beside CUDA and threads.

    Raises:
        ValueError: The order makes batches of one set, and these would mix sets.

    Examples:
        >>> from moteur.sampling import DatasetPool, EpochOrder
        >>> loader = Loader(DatasetPool({"a": "wxyz"}), Sampler(EpochOrder({"a": 4})), batch_size=3, collate=list)
        >>> epoch = [batch for batch in loader]
        >>> [len(batch) for batch in epoch], sorted(epoch[0] + epoch[1])
        ([3, 1], ['w', 'x', 'y', 'z'])
        >>> loader
        Loader(4 samples an epoch, batch_size=3, workers=0, consumed=4)
    """

    def __init__(
        self,
        dataset: MapStyle,
        sampler: Sampler,
        *,
        batch_size: int,
        collate: Callable[[list[Any]], Batch] = default_collate,  # pyright: ignore[reportArgumentType]  # its own type is unknown
        workers: int = 0,
        prefetch: int = 2,
        pin: bool | None = None,
        start_method: Literal["spawn", "fork"] = "spawn",
    ) -> None:
        together = getattr(sampler.order, "batch_size", None)
        if together is not None and together % batch_size:
            raise ValueError(f"batch_size: expected {together}, the order's for batches of one set, got {batch_size}")
        self.sampler, self.batch_size, self.workers = sampler, batch_size, workers
        self._consumed = sampler.consumed
        self._throughput = Throughput()
        self._batches: DataLoader[Any] = DataLoader(
            dataset,  # pyright: ignore[reportArgumentType]  # only subscripted
            batch_size,
            sampler=sampler,  # pyright: ignore[reportArgumentType]  # only iterated
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers else None,
            worker_init_fn=_begin_worker,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            # Seeds the workers. A generator of its own leaves the global random numbers to the training.
            generator=torch.Generator().manual_seed(0),
        )

    def __repr__(self) -> str:
        length = self.sampler.order.length
        samples = "endless" if length is None else f"{length} samples an epoch"
        return f"Loader({samples}, batch_size={self.batch_size}, workers={self.workers}, consumed={self._consumed})"

    def __len__(self) -> int:
        """Batches per epoch; an endless order has none, and raises TypeError."""
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
            self._throughput += Throughput(size, arrived - mark, arrived - asked)
            mark = arrived
            yield batch
            asked = perf_counter()

    def take_throughput(self) -> Throughput:
        """Throughput since the previous call. The first includes the start of the workers."""
        throughput, self._throughput = self._throughput, Throughput()
        return throughput

    def state_dict(self) -> dict[str, int]:
        """State after the last batch that was handed out."""
        return self.sampler.state_dict(consumed=self._consumed)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state, with the next iteration; a state of another order is refused."""
        self.sampler.load_state_dict(state)
        self._consumed = state["consumed"]


def _begin_worker(worker: int) -> None:
    del worker
    Finalize(None, _leave_worker, exitpriority=-100)  # runs last: queues wait for undelivered batches at -5


def _leave_worker() -> None:
    """End a worker without shutting its interpreter down, as `multiprocessing` ends forked processes.

    A worker that is told to stop does not wait for the thread that copies its last batch to shared memory. Interpreter
    shutdown would end that thread in the middle of C++ code, which aborts the process (`terminate called without an
    active exception`), and the training process would report a killed worker.
    """
    if sys.exc_info()[0] is None:  # otherwise the traceback is still to be printed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
