"""Memory of the training process and its loader workers over an hour of samples.

    python benchmarks/loader_memory.py

An hour of recording at 30 Hz is 108,000 frames; that many samples are drawn, epoch after epoch, from a set of three AV1
cameras, and collated for the tiny preset. Each worker may keep 12 of the set's 18 videos open, so videos are opened and
closed all the time. Measured is the resident anonymous and shared memory of this process and its workers; pages that
several of them share count once (`Pss_Anon` and `Pss_Shmem`). Libraries are left out: other programs on the machine
share them, and come and go.

Nothing interferes with the run until its last point. Then this process once returns memory that it no longer uses to
the system (`malloc_trim`; glibc keeps about a hundred MiB, sometimes more, sometimes less) and is measured again. With
`--trim` it does so at every point, and measures before and after: such a run shows slow leaks more clearly, but says
nothing about a process that is never trimmed. Workers are never trimmed.

Pictures are small, 112x112, so that an hour of them passes in minutes: memory lost for an open video, a seek, a frame
or a batch is lost for small ones too. Speed is measured by `loader.py` and `loader_workers.py`. The result is written
anew at every point and says whether it is complete; give a shorter run (`--samples 3600`) a file of its own (`--out`).
"""

import argparse
import ctypes
import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from loader import machine, versions, write

from moteur.data import (
    BoundedCache,
    Loader,
    Robot,
    RobotDataset,
    RobotTransform,
    Window,
    compute_statistics,
)
from moteur.data.lerobot.video import available_backends
from moteur.recipes import Collator, Processor, preset
from moteur.sampling import DatasetPool, EpochOrder, Sampler

POINTS, WORKERS, BATCH, OPEN_VIDEOS = 18, 2, 16, 12
RESULT = Path(__file__).parent / "results" / "loader_memory.json"


class Letters:
    """Stands for a text tokenizer."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """One token a letter."""
        del add_special_tokens
        return {"input_ids": [[ord(letter) % 100 + 10 for letter in line[:16]] for line in text]}


def family() -> list[int]:
    """This process and its children."""
    mine, found = os.getpid(), [os.getpid()]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
        found += [int(folder.name)] if parent == mine else []
    return found


def measured() -> dict[str, float | int]:
    """Memory in MiB of this process and of all its children, and their open files."""
    sizes, files = [], 0
    for process in family():
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))))
        files += len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {"mib": round(sum(sizes) / 1024, 1), "of_this_process": round(sizes[0] / 1024, 1), "files": files}


def point(samples: int, *, trim: bool) -> dict[str, Any]:
    """Memory before and, on request, after trimming this process; and the load of the machine."""
    found = {"samples": samples} | measured() | {"load_average": round(os.getloadavg()[0], 1)}
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
        found |= {f"{key}_trimmed": value for key, value in measured().items() if key != "files"}
    return found


def growth(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Change of memory from the second point on, when all files have been opened and all caches are full."""
    later = points[1:]
    if len(later) < 2:  # two points make a slope
        return {}
    samples = [each["samples"] for each in later]
    keys = [key for key in ("mib", "of_this_process", "mib_trimmed") if all(key in each for each in later)]
    sizes = {key: [each[key] for each in later] for key in keys}
    return {
        "change_percent_since_second_point": {
            key: round(100 * (values[-1] - values[0]) / values[0], 2) for key, values in sizes.items()
        },
        "slope_mib_per_10000_samples": {
            key: round(1e4 * float(np.polyfit(samples, values, 1)[0]), 2) for key, values in sizes.items()
        },
    }


def main() -> None:
    """Draw, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=108_000, help="how many to draw: one hour at 30 Hz if not given")
    parser.add_argument("--size", type=int, default=112, help="height and width of the pictures")
    parser.add_argument("--trim", action="store_true", help="trim this process at every point, not only at the last")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()

    config, robot = replace(preset("tiny"), state_dim=32, action_dim=32), Robot.known("aloha")
    window = Window(chunk=config.chunk)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        report: dict[str, Any] = {
            "trimmed": "at every point" if options.trim else "after the last point",
            "command": shlex.join(["python", "benchmarks/loader_memory.py", *sys.argv[1:]]),
            "set": write(root, options.size),
            "decoder": available_backends()[0],
            "loader": f"{WORKERS} workers, batches of {BATCH}, {OPEN_VIDEOS} open videos a worker, tiny preset",
            "device": "cpu",
            "machine": machine(),
            "versions": versions("torch", "pyarrow", "av", "torchcodec", "transformers"),
        }
        statistics = compute_statistics([root], robot, chunk=config.chunk, progress=False)
        transform = RobotTransform(robot, statistics, window=window, size=config.frame_size)
        dataset = RobotDataset(root, transform, videos=BoundedCache(OPEN_VIDEOS))
        loader = Loader(
            DatasetPool({"aloha": dataset}),
            Sampler(EpochOrder({"aloha": len(dataset)})),
            batch_size=BATCH,
            workers=WORKERS,
            collate=Collator(Processor(config, Letters())),
        )
        points, drawn, start = [], 0, time.perf_counter()
        while drawn < options.samples:
            for batch in loader:
                batch.to("cpu")
                drawn += len(batch)
                if drawn >= (len(points) + 1) * options.samples // POINTS:
                    points.append(point(drawn, trim=options.trim or drawn >= options.samples))
                    print(points[-1], flush=True)
                    counts = {
                        "samples": drawn,
                        "hours_of_recording": round(drawn / 30 / 3600, 3),
                        "complete": drawn >= options.samples,
                        "seconds": round(time.perf_counter() - start),
                    }
                    found = report | counts | growth(points) | {"points": points}
                    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                if drawn >= options.samples:
                    break


if __name__ == "__main__":
    main()
