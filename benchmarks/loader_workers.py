"""Training batches per second from the loader, and how long a training step waits for them.

    python benchmarks/loader_workers.py

Set, robot and windows are those of `loader.py`; batches have the sizes of the released 3B model: frames of 224x224, 50
actions. All work of a training step's data is included: decoding, preparation, tokens, collation and shared memory.
First nothing is done with the batches, so that the loader is the limit. Then each step sleeps for a given time, like a
CPU that waits for an accelerator.

Give a quick run (`--rounds 1 --batches 2`) a file of its own (`--out`).
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loader import EPISODES, LENGTH, machine, versions, write
from loader_memory import Letters

from moteur.data import Loader, Robot, RobotDataset, RobotTransform, compute_statistics
from moteur.data.lerobot.video import available_backends
from moteur.data.loader import Throughput
from moteur.recipes import Collator, Processor, TrainingBatch, preset
from moteur.sampling import DatasetPool, EpochOrder, Sampler

BATCH, WARM_UP = 8, 4
WORKERS = (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "loader_workers.json"


def measure(loader: Loader[TrainingBatch], step: float, *, rounds: int, batches: int) -> list[Throughput]:
    """Throughput of several rounds, each after a warm-up, with a training step of so many seconds."""
    found: list[Throughput] = []
    for _ in range(rounds):
        for turn, batch in enumerate(loader):
            batch.to("cpu")
            time.sleep(step)
            if turn == WARM_UP:
                loader.take_throughput()
            if turn == WARM_UP + batches:
                found.append(loader.take_throughput())
                break
    return found


def summary(rounds: list[Throughput]) -> dict[str, Any]:
    """Medians, and the spread of the throughput."""
    rates = [each.samples_per_second for each in rounds]
    return {
        "samples_per_second": round(statistics.median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
        "waiting_percent": round(100 * statistics.median(each.wait_ratio for each in rounds), 1),
    }


def main() -> None:
    """Measure, and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per case; the median is reported")
    parser.add_argument("--batches", type=int, default=10, help="batches per round, after the warm-up")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()

    torch.set_num_threads(1)
    where, robot = machine(), Robot.known("aloha")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        recorded = write(root)
        transform = RobotTransform(robot, compute_statistics([root], robot, progress=False))
        collate = Collator(Processor(preset("3B"), Letters()))

        def case(workers: int, step: float = 0.0) -> dict[str, Any]:
            pool = DatasetPool({"aloha": RobotDataset(root, transform)}.__getitem__)
            sampler = Sampler(EpochOrder({"aloha": EPISODES * LENGTH}))
            loader = Loader(pool, sampler, batch_size=BATCH, workers=workers, collate=collate)
            found = summary(measure(loader, step, rounds=options.rounds, batches=options.batches))
            print(f"{workers} workers, a step of {1e3 * step:.0f} ms: {found}", flush=True)
            return found

        idle = {workers: case(workers) for workers in WORKERS}
        steps: dict[str, Any] = {}
        for share in (1.0, 2.0):
            step = share * BATCH / idle[1]["samples_per_second"]
            name = f"a step {share:g} times as long as one worker needs for a batch ({1e3 * step:.0f} ms)"
            steps[name] = {f"{workers} workers": case(workers, step) for workers in WORKERS}
    report = {
        "command": shlex.join(["python", "benchmarks/loader_workers.py", *sys.argv[1:]]),
        "set": recorded,
        "batch": f"{BATCH} samples of the 3B preset: 9 frames of 224x224, 50 actions",
        "decoder": available_backends()[0],
        "device": "cpu",
        "machine": where | {"load_average_at_end": round(os.getloadavg()[0], 1)},
        "rounds": options.rounds,
        "batches_per_round": options.batches,
        "versions": versions("torch", "pyarrow", "av", "torchcodec", "transformers"),
        "nothing done with the batches": {f"{workers} workers": found for workers, found in idle.items()},
        **steps,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
