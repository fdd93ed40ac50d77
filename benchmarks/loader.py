"""How fast windows of three cameras are read on one core, beside LeRobot's own reader on the same set.

    benchmarks/loader.sh

The set is written by moteur in LeRobot's default encoding (AV1, a key frame every second frame), one file a camera and
episode: 60 episodes of three cameras, 180 videos, so that a reader's limit of open files counts. Every reader returns
the frames of t-15, t and t+15 from three cameras, the state and 50 actions, for the same random frames, in turn, in one
process on one core. LeRobot reads with torchcodec, its default and the only one of its decoders that works beside this
torch. LeRobot converts pictures to floats; moteur leaves them as bytes, to be converted on the device. Both the time
that passed and the processor time are told; on a busy machine the second is steadier. Everything that is timed is read
once more and compared: all readers must give the same numbers and the same pictures. Before that, each has read, and is
compared in, a frame of every episode, so that files are open and caches full. A last run, of moteur alone, draws
samples for long enough to see whether memory grows.

A quick run (`--rounds 1 --episodes 6 --memory-samples 90`) should be given a file of its own (`--out`).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot.video import available_backends

CAMERAS = [f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")]
OFFSETS = dict.fromkeys(CAMERAS, (-15, 0, 15)) | {"action": range(50)}
FPS, SIZE = 30, 224
EPISODES, LENGTH = 6, 300  # what the benchmarks beside this one record
MANY, SHORT = 60, 100  # what this one does: 180 videos
ITEMS, MEMORY_POINTS = 20, 9
RESULT = Path(__file__).parent / "results" / "loader.json"


def write(root: Path, size: int = SIZE, *, episodes: int = EPISODES, length: int = LENGTH) -> str:
    """A set with moving pictures: a drifting gradient, a moving block and a little sensor noise. Returns what it is."""
    vectors = ("observation.state", "action")
    features = {key: Feature("float32", (14,)) for key in vectors}
    features |= {camera: Feature("video", (size, size, 3)) for camera in CAMERAS}
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    block = size // 8
    with LeRobotWriter(root, fps=FPS, features=features, robot_type="aloha") as writer:
        for episode in range(episodes):
            for step in range(length):
                frame: dict[str, Any] = {key: rng.normal(size=14).astype(np.float32) for key in vectors}
                for number, camera in enumerate(CAMERAS):
                    planes = (
                        (columns + step) % 256,
                        (rows * 2 + number * 40) % 256,
                        (rows + columns + episode * 30) % 256,
                    )
                    picture = np.stack(planes, axis=-1) + rng.integers(-4, 5, size=(size, size, 1))
                    left = int(size * (0.4 + 0.35 * np.sin(step / 20 + number)))
                    picture[3 * block : 4 * block, left : left + block] = (255, 40 * number, 0)
                    frame[camera] = picture.clip(0, 255).astype(np.uint8)
                writer.add(frame, "move")
            writer.save_episode()
    return f"{episodes} episodes of {length} frames, 3 cameras of {size}x{size}, AV1, key frame every 2nd frame"


def readers(root: Path) -> dict[str, Any]:
    """Every reader that works here, by name."""
    found = {f"moteur, {name}": LeRobotSet(root, offsets=OFFSETS, backend=name) for name in available_backends()}
    try:
        importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        return found
    # As in scripts/lerobot_compat.py: torchvision's Python half asks for these while it is imported.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: PLC0415  # only where it is installed

    found["library"] = library
    seconds = {key: [step / FPS for step in steps] for key, steps in OFFSETS.items()}
    found["lerobot, torchcodec"] = LeRobotDataset(
        "local/set", root=root, delta_timestamps=seconds, video_backend="torchcodec"
    )
    return found


def compare(items: list[dict[str, Any]]) -> None:
    """Raise if the readers' items differ; pictures may be bytes or the floats that LeRobot makes of them."""
    for other in items[1:]:
        for key in ("observation.state", "action", "action_is_pad", *CAMERAS, *(f"{name}_is_pad" for name in CAMERAS)):
            pair = [item[key] for item in (items[0], other)]
            if key in CAMERAS:
                pair = [value.float() / 255 if value.dtype == torch.uint8 else value for value in pair]
            torch.testing.assert_close(*pair, rtol=0, atol=0)


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code. A load above 1 a core means that something else was running."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "load_average_at_start": round(os.getloadavg()[0], 1)}


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of those of these packages that are installed."""
    present = [name for name in names if any(True for _ in importlib.metadata.distributions(name=name))]
    return {name: importlib.metadata.version(name) for name in present} | {"python": platform.python_version()}


def summary(wall: list[float], cpu: list[float]) -> dict[str, float]:
    """Milliseconds a sample, of the time that passed and of the processor's."""
    return {
        "samples_per_second": round(1 / statistics.median(wall), 1),
        "median_ms": round(statistics.median(wall) * 1e3, 2),
        "min_ms": round(min(wall) * 1e3, 2),
        "max_ms": round(max(wall) * 1e3, 2),
        "median_cpu_ms": round(statistics.median(cpu) * 1e3, 2),
        "min_cpu_ms": round(min(cpu) * 1e3, 2),
        "max_cpu_ms": round(max(cpu) * 1e3, 2),
    }


def resident_mib() -> float:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(read: Callable[[int], Any], size: int, samples: int) -> list[float]:
    """Resident memory after equal shares of many random samples."""
    rng, points = random.Random(1), []  # noqa: S311  # positions, not secrets
    for _ in range(MEMORY_POINTS):
        for _ in range(samples // MEMORY_POINTS):
            read(rng.randrange(size))
        points.append(round(resident_mib(), 1))
    return points


def main() -> None:
    """Measure, and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help=f"rounds of {ITEMS} samples; the median is told")
    parser.add_argument("--episodes", type=int, default=MANY, help="episodes of the set, with three videos each")
    parser.add_argument("--memory-samples", type=int, default=9_000, help="samples over which memory is watched")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()

    torch.set_num_threads(1)
    where = machine()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        recorded = write(root, episodes=options.episodes, length=SHORT)
        found = readers(root)
        found.pop("library", None)
        rng = random.Random(0)  # noqa: S311  # positions, not secrets
        wall: dict[str, list[float]] = {name: [] for name in found}
        cpu: dict[str, list[float]] = {name: [] for name in found}
        for episode in range(options.episodes):
            position = episode * SHORT + rng.randrange(SHORT)
            compare([reader[position] for reader in found.values()])
        for _ in range(options.rounds):
            positions = [rng.randrange(options.episodes * SHORT) for _ in range(ITEMS)]
            for name, reader in found.items():
                start, used = time.perf_counter(), time.process_time()
                for position in positions:
                    reader[position]
                wall[name].append((time.perf_counter() - start) / ITEMS)
                cpu[name].append((time.process_time() - used) / ITEMS)
            for position in positions:
                compare([reader[position] for reader in found.values()])
        fresh = LeRobotSet(root, offsets=OFFSETS, backend="pyav")
        grown = memory(fresh.__getitem__, len(fresh), options.memory_samples)
    cases = {name: summary(wall[name], cpu[name]) for name in found}
    report = {
        "command": shlex.join(["benchmarks/loader.sh", *sys.argv[1:]]),
        "set": recorded,
        "videos": options.episodes * len(CAMERAS),
        "sample": "frames of t-15, t, t+15 from 3 cameras, 14 joints, 50 actions, at random positions",
        "device": "cpu, 1 core",
        "machine": where | {"load_average_at_end": round(os.getloadavg()[0], 1)},
        "rounds": options.rounds,
        "samples_per_round": ITEMS,
        "versions": versions("torch", "pyarrow", "av", "torchcodec", "lerobot"),
        "cases": cases,
        "equal": f"{options.rounds * ITEMS + options.episodes} samples: the same pictures, numbers and flags from "
        "every reader, bit for bit",
        "resident_mib": {"samples_between_points": options.memory_samples // MEMORY_POINTS, "points": grown},
    }
    rival = cases.get("lerobot, torchcodec")
    if rival:
        for key in ("median_ms", "median_cpu_ms"):
            ratios = {name: round(rival[key] / case[key], 2) for name, case in cases.items()}
            report["times_lerobot" if key == "median_ms" else "times_lerobot_cpu"] = ratios
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
