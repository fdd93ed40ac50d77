"""Several ways to do the same thing, timed in turn, so that all of them see the same machine."""

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Arm:
    """One way to do it.

    Attributes:
        name: What tables call it.
        run: What is timed.
        before: What must be done before each run, not timed.
        first: Seconds of the first call.
        seconds: Seconds of every round.
        cpu_seconds: The same in time that the process ran, all threads together: steadier on a busy machine.
        peak_mib: Memory that the first call took beyond what was in use before it, at its highest.
        result: What the last call returned.
    """

    name: str
    run: Callable[[], Tensor]
    before: Callable[[], object] = lambda: None
    first: float = 0.0
    seconds: list[float] = field(default_factory=list[float])
    cpu_seconds: list[float] = field(default_factory=list[float])
    peak_mib: float = 0.0
    result: Tensor = field(default_factory=lambda: torch.empty(0))

    def summary(self) -> dict[str, Any]:
        """Figures for a report."""
        return spread(self.seconds) | {
            "cpu_median_ms": round(1e3 * statistics.median(self.cpu_seconds), 2),
            "first_call_ms": round(1e3 * self.first, 2),
            "peak_mib_beyond_weights": round(self.peak_mib, 1),
            "rounds": len(self.seconds),
        }


def in_turn(arms: Sequence[Arm], *, rounds: int, device: torch.device, warmups: int = 1) -> None:
    """Run every arm once in each round, the first call and `warmups` rounds apart."""
    for arm in arms:
        arm.before()
        give_back()
        in_use = _start_peak(device)
        arm.first = _timed(arm, device)
        arm.peak_mib = _peak(device) - in_use
        print(f"{arm.name}: first call {arm.first:.2f} s", file=sys.stderr, flush=True)
    for turn in range(warmups + rounds):
        for arm in arms:
            arm.before()
            ran = time.process_time()
            seconds = _timed(arm, device)
            if turn >= warmups:
                arm.seconds.append(seconds)
                arm.cpu_seconds.append(time.process_time() - ran)


def wait(device: torch.device) -> None:
    """Let everything that was launched finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and extremes in milliseconds, and each quantile that has at least one round beyond it."""
    values = 1e3 * np.asarray(seconds)
    figures = {"median_ms": statistics.median(values)}
    figures |= {
        f"p{share}_ms": np.quantile(values, share / 100) for share in (90, 99) if len(values) * (100 - share) >= 100
    }
    figures |= {"min_ms": values.min(), "max_ms": values.max()}
    return {name: round(float(value), 2) for name, value in figures.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What it runs on, and how busy that is now."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = set(facts.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}
    found: dict[str, Any] = {
        "cpu": facts.get("model name", platform.processor()),
        "cpu_family_model_stepping": [facts.get(key) for key in ("cpu family", "model", "stepping")],
        "cpu_units": sorted(units),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["versions"]["cuda"] = torch.version.cuda
    return found


def in_use_mib(device: torch.device) -> float:
    """Memory of this process on the device."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else _status_mib("VmRSS")


def give_back() -> None:
    """Return freed memory to the system: the C library keeps what many small weights left, gigabytes of it here."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _timed(arm: Arm, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    arm.result = arm.run()
    wait(device)
    return time.perf_counter() - start


def _start_peak(device: torch.device) -> float:
    """Forget the highest use so far; what is in use now, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: start VmHWM again from what is in use
    return in_use_mib(device)


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    """What Linux says about this process: `VmRSS`, memory in use; `VmHWM`, the most since `_start_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))
