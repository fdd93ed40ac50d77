"""Time the sampling block on one core and write benchmarks/results/sampling.json.

Run: OMP_NUM_THREADS=1 python benchmarks/sampling.py

Rivals, measured in the same run: for the assignment, two plain O(n K) loops that look for the least-loaded worker anew
for each dataset, one in Python, one with numpy's argmin. Times are CPU seconds of this process, so that a busy machine
does not count against anyone; the wall time is beside them.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moteur.sampling import assign

RESULT = Path(__file__).parent / "results" / "sampling.json"
DATASETS, WORKERS = 100_000, 1_024


def timed(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """CPU and wall seconds of `work`: median and extremes."""
    cpu, wall = [], []
    for _ in range(repeats):
        before = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return {
        "cpu_s_median": round(statistics.median(cpu), 4),
        "cpu_s_min_max": [round(min(cpu), 4), round(max(cpu), 4)],
        "wall_s_median": round(statistics.median(wall), 4),
        "repeats": repeats,
    }


def plain_python(sizes: dict[str, int]) -> list[int]:
    """Longest first with a linear search, as one would write it down."""
    loads: list[int] = [0] * WORKERS
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        loads[loads.index(min(loads))] += sizes[name]
    return loads


def plain_numpy(sizes: dict[str, int]) -> list[int]:
    """The same with numpy's argmin."""
    loads = np.zeros(WORKERS, dtype=np.int64)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        loads[loads.argmin()] += sizes[name]
    return loads.tolist()


def assignment() -> dict[str, Any]:
    """100,000 heavy-tailed datasets over 1,024 workers."""
    rng = np.random.default_rng(0)
    draws = rng.lognormal(8.0, 1.0, DATASETS).astype(np.int64) + 1
    sizes = {f"set-{index:06d}": int(size) for index, size in enumerate(draws)}
    ours = assign(sizes, WORKERS)
    for rival in (plain_python, plain_numpy):
        if rival(sizes) != list(ours.loads):
            raise AssertionError(f"{rival.__name__} and assign disagree about the loads")
    return {
        "shapes": {"datasets": DATASETS, "workers": WORKERS, "sizes": "lognormal(8, 1) frames"},
        "moteur": timed(lambda: assign(sizes, WORKERS), 7),
        "rival, plain Python argmin": timed(lambda: plain_python(sizes), 3),
        "rival, numpy argmin": timed(lambda: plain_numpy(sizes), 5),
        "note": "moteur also checks the input, derives the seeds and builds the result; the rivals return loads only",
        "heaviest load over mean": round(ours.imbalance, 6),
    }


def main() -> None:
    """Run everything and write the JSON."""
    report = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/sampling.py",
        "device": f"one core of {platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "assignment": assignment(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
