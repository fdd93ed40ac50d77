"""Whether memory stays flat: an hour of samples through the whole loader, workers and all.

    python benchmarks/loader_memory.py

An hour of recording at 30 Hz is 108,000 frames; that many samples are drawn, epoch after epoch, from a set of three
AV1 cameras, and become batches of the tiny preset. Each worker may keep 12 of the set's 18 videos open, so that videos
are opened and closed all the time. What is counted is the resident anonymous and shared memory of this process and its
workers, where pages that several of them share count once (`Pss_Anon` and `Pss_Shmem`). Libraries are left out: other
programs on the machine share them, and come and go. Speed is not the subject: `loader.py` and `loader_workers.py`
measure it.
"""

import importlib.metadata
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

from loader import EPISODES, LENGTH, SIZE, write

from moteur.recipes import Processor, preset
from moteur.recipes.lerobot import BoundedCache
from moteur.recipes.loading import Figures, Loader
from moteur.recipes.robots import ROBOTS, Collator, Preparation, RobotDataset, Window, compute_statistics
from moteur.sampling import EpochOrder, Pool, Sampler

SAMPLES, POINTS, WORKERS, BATCH, OPEN_VIDEOS = 108_000, 18, 2, 16, 12
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
    total, mine = sum(sizes) / 1024, sizes[0] / 1024
    return {"mib": round(total, 1), "of_this_process": round(mine, 1), "files": files}


def main() -> None:
    """Draw, measure, and write the result."""
    config, robot = replace(preset("tiny"), state_dim=32, action_dim=32), ROBOTS["aloha"]
    window = Window(steps=config.chunk)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write(root)
        statistics = compute_statistics([root], robot, steps=config.chunk, progress=False)
        preparation = Preparation(robot, statistics, window=window, size=config.frame_size)
        dataset = RobotDataset(root, preparation, videos=BoundedCache(OPEN_VIDEOS))
        loader = Loader(
            Pool({"aloha": dataset}.__getitem__),
            Sampler(EpochOrder({"aloha": len(dataset)})),
            batch_size=BATCH,
            workers=WORKERS,
            collate=Collator(Processor(config, Letters())),
        )
        points, drawn, figures = [], 0, Figures()
        while drawn < SAMPLES:
            for batch in loader:
                batch.to("cpu")
                drawn += len(batch)
                if drawn >= (len(points) + 1) * SAMPLES // POINTS:
                    figures += loader.take_figures()
                    points.append({"samples": drawn, **measured()})
                    print(points[-1], figures, flush=True)
                if drawn >= SAMPLES:
                    break
    names = ("torch", "pyarrow", "av", "transformers")
    first, last = points[1]["mib"], points[-1]["mib"]
    report = {
        "command": "python benchmarks/loader_memory.py",
        "set": f"{EPISODES} episodes of {LENGTH} frames, 3 cameras of {SIZE}x{SIZE}, AV1, key frame every 2nd frame",
        "loader": f"{WORKERS} workers, batches of {BATCH}, {OPEN_VIDEOS} open videos a worker, tiny preset",
        "device": f"cpu, {os.cpu_count()} cores, on a machine busy with other work",
        "versions": {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()},
        "samples": drawn,
        "seconds": round(figures.seconds),
        "points": points,
        "growth_percent_after_second_point": round(100 * (last - first) / first, 2),
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
