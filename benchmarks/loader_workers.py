"""How fast finished training batches come out of the loader, and how long a training step waits for them.

    python benchmarks/loader_workers.py

The set, the robot and the windows are those of `loader.py`; the batches are those of the released 3B sizes: frames at
224, 256 patches a view, 50 actions. Everything that a training step needs is made: decoding, preparation, tokens,
patches, collation, the move to shared memory and back to floats. First nothing is done with the batches, so that the
loader is the limit. Then a step stands still for a given time, as a processor does that waits for an accelerator.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loader import EPISODES, LENGTH, SIZE, write
from loader_memory import Letters

from moteur.recipes import Processor, preset
from moteur.recipes.lerobot import available_backends
from moteur.recipes.loading import Figures, Loader
from moteur.recipes.robots import ROBOTS, Collator, Preparation, RobotDataset, TrainingBatch, compute_statistics
from moteur.sampling import EpochOrder, Pool, Sampler

BATCH, WARM_UP, BATCHES, ROUNDS = 8, 4, 10, 3
WORKERS = (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "loader_workers.json"


def measure(loader: Loader[TrainingBatch], step: float) -> list[Figures]:
    """Figures of several rounds, each after a warm-up, with a step of that many seconds."""
    found: list[Figures] = []
    for _ in range(ROUNDS):
        for turn, batch in enumerate(loader):
            batch.to("cpu")
            time.sleep(step)
            if turn == WARM_UP:
                loader.take_figures()
            if turn == WARM_UP + BATCHES:
                found.append(loader.take_figures())
                break
    return found


def summary(figures: list[Figures]) -> dict[str, Any]:
    """Medians, and the spread of the throughput."""
    rates = [figure.samples_per_second for figure in figures]
    return {
        "samples_per_second": round(statistics.median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
        "waiting_percent": round(100 * statistics.median(figure.wait_ratio for figure in figures), 1),
    }


def main() -> None:
    """Measure, and write the result beside this file."""
    torch.set_num_threads(1)
    robot = ROBOTS["aloha"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write(root)
        preparation = Preparation(robot, compute_statistics([root], robot, progress=False))
        collate = Collator(Processor(preset("3B"), Letters()))

        def loader(workers: int) -> Loader[TrainingBatch]:
            pool = Pool({"aloha": RobotDataset(root, preparation)}.__getitem__)
            sampler = Sampler(EpochOrder({"aloha": EPISODES * LENGTH}))
            return Loader(pool, sampler, batch_size=BATCH, workers=workers, collate=collate)

        idle = {workers: summary(measure(loader(workers), 0.0)) for workers in WORKERS}
        rate = idle[1]["samples_per_second"]
        steps = {}
        for share in (1.0, 2.0):
            step = share * BATCH / rate
            name = f"a step {share:g} times as long as one worker needs for a batch ({1e3 * step:.0f} ms)"
            steps[name] = {f"{workers} workers": summary(measure(loader(workers), step)) for workers in WORKERS}
    names = ("torch", "pyarrow", "av", "transformers")
    report = {
        "command": "python benchmarks/loader_workers.py",
        "set": f"{EPISODES} episodes of {LENGTH} frames, 3 cameras of {SIZE}x{SIZE}, AV1, key frame every 2nd frame",
        "batch": f"{BATCH} samples of the 3B preset: 9 frames of 224x224, 768 patches, 50 actions",
        "decoder": available_backends()[0],
        "device": f"cpu, {os.cpu_count()} cores, on a machine busy with other work",
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": ROUNDS,
        "batches_per_round": BATCHES,
        "versions": {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()},
        "nothing done with the batches": {f"{workers} workers": case for workers, case in idle.items()},
        **steps,
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
