"""Which kernel computes a linear map fastest here: found by measuring, once for each shape and dtype."""

import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.runtime.float8 import Float8Linear
from moteur.runtime.linear import AtenLinear, JoinedGate, Linear, OneDnnLinear, PackedGate

Kernel = Literal["measured", "aten", "onednn"]
"""How linear maps are computed on the CPU: by whichever is measured to be faster at load, or one of the two."""

_ROUNDS = 7


class Linears:
    """Builds linear maps for one device and dtype.

    Args:
        kernel: `"measured"`, or one kernel for all. CUDA always takes `"aten"`.
        device: Where the maps run.
        dtype: What they compute in.
        batch: How many samples a call usually brings.

    Raises:
        ValueError: For an unknown kernel, or `"onednn"` where there is none.
    """

    def __init__(self, kernel: Kernel, *, device: torch.device, dtype: torch.dtype, batch: int = 1) -> None:
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel: expected one of {', '.join(map(repr, get_args(Kernel)))}, got {kernel!r}")
        self.packable = OneDnnLinear.available(device, dtype)
        if kernel == "onednn" and not self.packable:
            raise ValueError(
                f"kernel: expected oneDNN's operators for {dtype} on {device.type}, this PyTorch has none; take 'aten'"
            )
        self.kernel, self.device, self.dtype, self.batch = kernel, device, dtype, batch

    @property
    def wide(self) -> bool:
        """Whether folding one weight into another loses nothing worth mentioning: float32 or wider."""
        return torch.finfo(self.dtype).eps <= torch.finfo(torch.float32).eps

    def linear(
        self,
        weight: Float[Tensor, "outer inner"],
        bias: Float[Tensor, " outer"] | None = None,
        *,
        rows: int,
        float8: bool = False,
    ) -> Linear:
        """A map for about `rows` rows of input a sample; weight and bias come in any dtype, and are copied."""
        ready = None if bias is None else bias.detach().to(self.device, self.dtype, copy=True)
        if float8:
            return Float8Linear(weight.to(self.device), ready)
        mine = weight.detach().to(self.device, self.dtype, copy=True).contiguous()
        if self.packs(mine, rows):
            return OneDnnLinear(mine, ready, rows=self.batch * rows)
        return AtenLinear(mine, ready)

    def gate(
        self,
        gate: Float[Tensor, "hidden inner"],
        up: Float[Tensor, "hidden inner"],
        *,
        rows: int,
        float8: bool = False,
    ) -> nn.Module:
        """`silu(gate x) * up x` for about `rows` rows of input a sample."""
        if not float8 and self.packs(gate, rows):
            halves = (weight.to(self.device, self.dtype) for weight in (gate, up))
            return PackedGate(*(OneDnnLinear(half, None, rows=self.batch * rows) for half in halves))
        return JoinedGate(self.linear(torch.cat([gate, up]), rows=rows, float8=float8))

    def packs(self, weight: Float[Tensor, "outer inner"], rows: int) -> bool:
        """Whether a weight of this shape is packed for oneDNN."""
        if self.kernel != "measured" or not self.packable:
            return self.kernel == "onednn"
        outer, inner = weight.shape
        times = measured(self.batch * rows, inner, outer, self.dtype, torch.get_num_threads())
        return times["onednn"] < times["aten"]


@lru_cache(maxsize=256)
def measured(rows: int, inner: int, outer: int, dtype: torch.dtype, threads: int) -> dict[str, float]:  # noqa: ARG001
    """Median seconds of each kernel on the CPU for one shape; taken in turns, so that both see the same machine."""
    own = torch.Generator().manual_seed(0)
    x, weight = (torch.rand(count, inner, dtype=dtype, generator=own) for count in (rows, outer))
    candidates: dict[str, Callable[[Tensor], Tensor]] = {
        "aten": AtenLinear(weight, None),
        "onednn": OneDnnLinear(weight, None, rows=rows),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 2):
            for name, run in candidates.items():
                start = time.perf_counter()
                run(x)
                if turn >= 2:  # noqa: PLR2004  the first two warm up
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def fastest_dtype(own: torch.dtype, *, rows: int, inner: int, outer: int) -> torch.dtype:
    """What a model of dtype `own` is computed in on this CPU: float32 where bfloat16 has no fast kernels.

    bfloat16 weights are float32 numbers, so nothing is lost but memory.
    """
    if own != torch.bfloat16 or not OneDnnLinear.available(torch.device("cpu"), own):
        return own
    threads = torch.get_num_threads()
    half, full = (min(measured(rows, inner, outer, dtype, threads).values()) for dtype in (own, torch.float32))
    return own if half < full else torch.float32
