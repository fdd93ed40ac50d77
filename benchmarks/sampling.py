"""Time and peak memory of the sampling block on one core, written to benchmarks/results/sampling.json.

Run: OMP_NUM_THREADS=1 python benchmarks/sampling.py

Rivals, measured in the same run: for the assignment, two plain O(n K) loops that look for the least-loaded worker anew
for each dataset, one in Python, one with numpy's argmin; for the orders, a shuffled list of one rank's frames, which is
what torch's RandomSampler makes. Each order is measured in a process of its own. Times are CPU seconds, so that a busy
machine does not count against anyone; the wall time is beside them.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moteur.sampling import EpochOrder, Sampler, WeightedOrder, assign

RESULT = Path(__file__).parent / "results" / "sampling.json"
DATASETS, WORKERS = 100_000, 1_024
SETS, FRAMES, EPISODE_FRAMES, RANKS, DRAWS = 5_000, 692_000_000, 480, 64, 1_000_000
ORDERS = ("WeightedOrder", "EpochOrder", "shuffled list")


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
        "note": "moteur also computes the seeds and builds the result; the rivals return loads only",
        "heaviest load over mean": round(ours.imbalance, 6),
    }


def mixture() -> dict[str, np.ndarray]:
    """Episode ranges of 5,000 sets of very different sizes, 692 million frames in all: the paper's Table 3 in size."""
    rng = np.random.default_rng(0)
    size = rng.lognormal(0, 1.5, SETS)
    episodes = np.maximum(1, size / size.sum() * FRAMES / EPISODE_FRAMES).astype(np.int64)
    sets: dict[str, np.ndarray] = {}
    for index, count in enumerate(episodes.tolist()):
        stops = rng.integers(EPISODE_FRAMES // 2, EPISODE_FRAMES * 3 // 2, count).cumsum()
        sets[f"set-{index:04d}"] = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
    return sets


def peak_mib() -> float:
    """Largest resident memory of this process so far (Linux; `getrusage` would carry over that of the parent)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def one_order(kind: str) -> dict[str, Any]:
    """Build one rank's order and draw from it, in this process."""
    bare = peak_mib()
    sets = mixture()
    total = sum(int(ranges[-1, 1]) for ranges in sets.values())
    given = sum(ranges.nbytes for ranges in sets.values()) / 2**20
    start = time.process_time()
    if kind == "shuffled list":
        order = np.random.default_rng(0).permutation(total // RANKS)
        built, walk = time.process_time() - start, iter(order.tolist())
    else:
        weights = {name: float(ranges[-1, 1]) ** 0.7 for name, ranges in sets.items()}
        if kind == "WeightedOrder":
            sampler = Sampler(WeightedOrder(sets, weights, rank=RANKS // 2, ranks=RANKS))
        else:
            sampler = Sampler(EpochOrder(sets, rank=RANKS // 2, ranks=RANKS))
        built, walk = time.process_time() - start, iter(sampler)
    start = time.process_time()
    for _ in zip(range(DRAWS), walk, strict=False):
        pass
    spent = time.process_time() - start
    return {
        "frames": total,
        "episodes": sum(map(len, sets.values())),
        "episode ranges given, MiB": round(given, 1),
        "build_cpu_s": round(built, 3),
        "us_per_index": round(spent / DRAWS * 1e6, 3),
        "peak memory of the process, MiB": round(peak_mib(), 1),
        "of which Python, numpy and this script, MiB": round(bare, 1),
    }


def orders() -> dict[str, Any]:
    """Each kind in its own process, so that peaks of memory do not mix."""
    report: dict[str, Any] = {"shapes": {"sets": SETS, "ranks": RANKS, "draws timed": DRAWS}}
    for kind in ORDERS:
        run = [sys.executable, __file__, "--order", kind]
        runs = [
            json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)  # noqa: S603 - ourselves
            for _ in range(3)
        ]
        report[kind] = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    report["note"] = (
        "medians of 3 processes; memory includes the ranges given; the shuffled list holds one rank's frame numbers "
        "only: it neither weighs datasets nor finds episodes, and a resumed run must make it again"
    )
    return report


def main() -> None:
    """Run everything and write the JSON, or time one order and print it."""
    options = _arguments()
    if options.order is not None:
        print(json.dumps(one_order(options.order)))
        return
    report = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/sampling.py",
        "device": f"one core of {platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "assignment": assignment(),
        "orders": orders(),
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT, help="where to write the result")
    parser.add_argument("--order", choices=ORDERS, help="only build and draw from one order, and print the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
