"""How fast windows of three cameras are read on one core, beside LeRobot's own reader on the same set.

    benchmarks/loader.sh

The set is written by moteur in LeRobot's default encoding (AV1, a key frame every second frame). Every reader returns
the frames of t-15, t and t+15 from three cameras, the state and 50 actions, for the same random frames, in turn, in one
process on one core. LeRobot reads with torchcodec, its default and the only one of its decoders that works beside this
torch. LeRobot converts pictures to floats; moteur leaves them as bytes, to be converted on the device. Both the time
that passed and the processor time are told; on a busy machine the second is steadier. Everything that is timed is read
once more and compared: all readers must give the same numbers and the same pictures. A last run, of moteur alone, draws
samples for long enough to see whether memory grows.
"""

import importlib.metadata
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moteur.recipes.lerobot import Feature, LeRobotSet, SetWriter, available_backends

CAMERAS = [f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")]
OFFSETS = dict.fromkeys(CAMERAS, (-15, 0, 15)) | {"action": range(50)}
FPS, EPISODES, LENGTH, SIZE = 30, 6, 300, 224
ROUNDS, ITEMS = 15, 20
MEMORY_SAMPLES, MEMORY_POINTS = 9_000, 9
RESULT = Path(__file__).parent / "results" / "loader.json"


def write(root: Path, size: int = SIZE) -> str:
    """A set with moving pictures: a drifting gradient, a moving block and a little sensor noise. Returns what it is."""
    vectors = ("observation.state", "action")
    features = {key: Feature("float32", (14,)) for key in vectors}
    features |= {camera: Feature("video", (size, size, 3)) for camera in CAMERAS}
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    block = size // 8
    with SetWriter(root, fps=FPS, features=features, robot_type="aloha") as writer:
        for episode in range(EPISODES):
            for step in range(LENGTH):
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
    return f"{EPISODES} episodes of {LENGTH} frames, 3 cameras of {size}x{size}, AV1, key frame every 2nd frame"


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


def memory(read: Callable[[int], Any], size: int) -> list[float]:
    """Resident memory after equal shares of many random samples."""
    rng, points = random.Random(1), []  # noqa: S311  # positions, not secrets
    for _ in range(MEMORY_POINTS):
        for _ in range(MEMORY_SAMPLES // MEMORY_POINTS):
            read(rng.randrange(size))
        points.append(round(resident_mib(), 1))
    return points


def main() -> None:
    """Measure, and write the result beside this file."""
    torch.set_num_threads(1)
    where = machine()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        recorded = write(root)
        found = readers(root)
        found.pop("library", None)
        rng = random.Random(0)  # noqa: S311  # positions, not secrets
        wall: dict[str, list[float]] = {name: [] for name in found}
        cpu: dict[str, list[float]] = {name: [] for name in found}
        for turn in range(ROUNDS + 2):
            positions = [rng.randrange(EPISODES * LENGTH) for _ in range(ITEMS)]
            for name, reader in found.items():
                start, used = time.perf_counter(), time.process_time()
                for position in positions:
                    reader[position]
                if turn >= 2:  # the first two open files and fill caches
                    wall[name].append((time.perf_counter() - start) / ITEMS)
                    cpu[name].append((time.process_time() - used) / ITEMS)
            for position in positions:
                compare([reader[position] for reader in found.values()])
        fresh = LeRobotSet(root, offsets=OFFSETS, backend="pyav")
        grown = memory(fresh.__getitem__, len(fresh))
    cases = {name: summary(wall[name], cpu[name]) for name in found}
    report = {
        "command": "benchmarks/loader.sh",
        "set": recorded,
        "sample": "frames of t-15, t, t+15 from 3 cameras, 14 joints, 50 actions, at random positions",
        "device": "cpu, 1 core",
        "machine": where | {"load_average_at_end": round(os.getloadavg()[0], 1)},
        "rounds": ROUNDS,
        "samples_per_round": ITEMS,
        "versions": versions("torch", "pyarrow", "av", "torchcodec", "lerobot"),
        "cases": cases,
        "equal": f"{(ROUNDS + 2) * ITEMS} samples: the same pictures, numbers and flags from every reader, bit for bit",
        "resident_mib": {"samples_between_points": MEMORY_SAMPLES // MEMORY_POINTS, "points": grown},
    }
    rival = cases.get("lerobot, torchcodec")
    if rival:
        for key in ("median_ms", "median_cpu_ms"):
            ratios = {name: round(rival[key] / case[key], 2) for name, case in cases.items()}
            report["times_lerobot" if key == "median_ms" else "times_lerobot_cpu"] = ratios
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
