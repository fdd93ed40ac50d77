"""A whole call as one CUDA graph: recorded once, replayed with a single launch."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = tuple[Tensor | None, ...]


class Recorded:
    """A function of tensors recorded on static buffers.

    Recording is done by hand rather than by `torch.compile(mode="reduce-overhead")`, whose bookkeeping costs
    hundreds of microseconds for each graph and each call.

    Args:
        function: Reads its tensors by name, returns a tuple. It must neither wait for the device nor depend on values.
        example: Tensors of the sizes and dtypes that every later call will bring, on any device.
        device: Where to record.
    """

    def __init__(
        self,
        function: Callable[[Mapping[str, Tensor]], Outputs],
        example: Mapping[str, Tensor],
        *,
        device: torch.device,
    ) -> None:
        self.inputs = {name: value.to(device, copy=True) for name, value in example.items()}
        self.staging = {
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            for name, value in example.items()
            if value.device.type == "cpu"
        }
        self.device = device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(3):  # in which kernels are chosen and compiled
                function(self.inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as a loader's that pins memory, may go on meanwhile.
        with torch.cuda.device(device), torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
            self.outputs = function(self.inputs)
        self.copied = torch.cuda.Event()
        self.copied.record(torch.cuda.current_stream(device))

    def __call__(self, tensors: Mapping[str, Tensor]) -> Outputs:
        """Replay with these tensors; the results are copies, which the next call does not overwrite."""
        self.copied.synchronize()  # the staging of the call before must have been read
        for name, value in tensors.items():
            if name in self.staging:
                self.staging[name].copy_(value)
                value = self.staging[name]  # noqa: PLW2901
            self.inputs[name].copy_(value, non_blocking=True)
        self.copied.record(torch.cuda.current_stream(self.device))
        self.graph.replay()
        return tuple(None if output is None else output.clone() for output in self.outputs)
