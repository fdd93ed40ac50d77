"""What LeRobot 0.4.4 makes of sets that moteur writes; run by lerobot_compat.sh in LeRobot's own environment.

moteur writes a set (three videos, an image column, vectors, scalars, a matrix, a text, several tasks; once in one go,
once continued, once cut off by a kill in the middle of a save). LeRobot then reads every frame with windows. Each field
must equal what moteur's own reader returns, and the numbers must equal what was written.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

FPS, LENGTHS = 30, (40, 18, 65, 25)
CAMERAS = [f"observation.images.{name}" for name in ("front", "left", "right")]
OFFSETS = dict.fromkeys(CAMERAS, (-15, 0, 15)) | {"action": range(50)}
SHAPES = {"observation.state": (14,), "action": (14,), "gripper": (1,), "matrix": (2, 3)}


def picture(episode: int, step: int, camera: int) -> np.ndarray:
    """A moving gradient with a block that is different in every frame."""
    rows, columns = np.mgrid[:96, :128]
    channels = ((columns * 2 + step * 3) % 256, (rows * 2 + episode * 60) % 256, (rows + columns + camera * 80) % 256)
    image = np.stack(channels, axis=-1).astype(np.uint8)
    image[20:50, (step * 2) % 96 : (step * 2) % 96 + 30] = (255, 40 * camera, 30)
    return image


def values(episode: int, step: int) -> dict[str, object]:
    """Every feature of one frame."""
    rng = np.random.default_rng([episode, step])
    frame: dict[str, object] = {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
    frame |= {camera: picture(episode, step, number) for number, camera in enumerate(CAMERAS)}
    return frame | {"observation.images.still": picture(episode, step, 3), "note": f"{episode}/{step}"}


def write(root: Path, episodes: range, *, resume: bool, cut: int = 0) -> None:
    """Record episodes with moteur; with `cut`, the process kills itself at that rename."""
    from moteur.data import Feature, LeRobotWriter  # noqa: PLC0415  # needs nothing of LeRobot, nor it of us

    renames, replace = 0, os.replace

    def counted(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == cut:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = counted
    features = {key: Feature("float32", shape) for key, shape in SHAPES.items()}
    features |= {camera: Feature("video", (96, 128, 3)) for camera in CAMERAS}
    features |= {"observation.images.still": Feature("image", (96, 128, 3)), "note": Feature("string", (1,))}
    with LeRobotWriter(root, fps=FPS, features=features, robot_type="aloha", resume=resume) as writer:
        for episode in episodes:
            for step in range(LENGTHS[episode]):
                writer.add(values(episode, step), f"task {episode % 3}")
            writer.save_episode()


def theirs() -> Callable[[Path], Any]:
    """LeRobot's own reader."""
    # The torchvision wheel does not find its compiled half beside this torch; LeRobot needs none of it to read sets,
    # but its Python half asks for these two operators while it is imported.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: PLC0415  # after the two operators

    seconds = {key: [step / FPS for step in steps] for key, steps in OFFSETS.items()}
    globals()["_library"] = library
    return lambda folder: LeRobotDataset("local/set", root=folder, delta_timestamps=seconds, video_backend="torchcodec")


def compare(root: Path, open_theirs: Callable[[Path], Any]) -> dict[str, int]:
    """Read every frame with both readers and compare every field."""
    from moteur.data import LeRobotSet  # noqa: PLC0415  # as above

    lerobot, ours = open_theirs(root), LeRobotSet(root, offsets=OFFSETS, backend="pyav")
    if len(lerobot) != len(ours) or lerobot.meta.total_episodes != len(ours.index):
        raise SystemExit(f"{root}: LeRobot sees {len(lerobot)} frames, moteur {len(ours)}")
    compared = different = 0
    for position in range(len(ours)):
        expected, found = lerobot[position], ours[position]
        if set(expected) != set(found):
            raise SystemExit(f"{root}: fields differ: {sorted(set(expected) ^ set(found))}")
        written = values(*ours.locate(position))
        for key, value in expected.items():
            if isinstance(value, str):
                same = value == found[key]
            elif "images" in key and not key.endswith("_is_pad"):
                same = torch.equal((value * 255).round().to(torch.uint8), found[key])
            else:
                same = torch.equal(value, found[key])
            if key in ("observation.state", "gripper", "matrix"):
                same = same and np.array_equal(np.ravel(value), np.ravel(written[key]))
            compared, different = compared + 1, different + (not same)
    return {"episodes": len(ours.index), "frames": len(ours), "fields": compared, "different": different}


def main() -> None:
    """Write sets with moteur, read them with both, and record the outcome."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", default=sys.executable, help="Python that runs moteur's writer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--write", nargs=4, metavar=("ROOT", "FIRST", "LAST", "CUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        root, first, last, cut = given.write
        write(Path(root), range(int(first), int(last)), resume=int(first) > 0, cut=int(cut))
        return

    def record(root: Path, first: int, last: int, cut: int = 0) -> None:
        arguments = [given.ours, __file__, "--out", "unused", "--write", str(root), str(first), str(last), str(cut)]
        environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        code = subprocess.run(arguments, env=environment, check=False).returncode  # noqa: S603  # our own script
        if code != (-signal.SIGKILL if cut else 0):
            raise SystemExit(f"writing {root} ended with {code}")

    with tempfile.TemporaryDirectory() as folder:
        open_theirs, results = theirs(), {}
        record(Path(folder) / "whole", 0, 4)
        results["written at once"] = compare(Path(folder) / "whole", open_theirs)
        record(Path(folder) / "continued", 0, 2)
        record(Path(folder) / "continued", 2, 4)
        results["continued later"] = compare(Path(folder) / "continued", open_theirs)
        # Two renames create the set and eight save an episode; these cuts fall before each rename of the third.
        for cut in range(19, 27):
            root = Path(folder) / f"cut{cut}"
            record(root, 0, 4, cut)
            try:
                results[f"killed before rename {cut - 18} of 8 of the third episode"] = readable(root, open_theirs)
            except Exception as error:  # noqa: BLE001  # what LeRobot says is the result
                results[f"killed before rename {cut - 18} of 8 of the third episode"] = {"error": repr(error)}
        stats = open_theirs(Path(folder) / "whole").meta.stats
        results["statistics that LeRobot loads"] = {
            "features": len(stats),
            "with quantiles": sum("q99" in s for s in stats.values()),
        }
    names = ("lerobot", "torch", "torchcodec", "datasets", "pyarrow", "av")
    report = {
        "command": "scripts/lerobot_compat.sh",
        "versions": {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()},
        "results": results,
    }
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if any(result.get("different") or "error" in result for result in results.values()):
        raise SystemExit("LeRobot and moteur disagree")


def readable(root: Path, open_theirs: Callable[[Path], Any]) -> dict[str, int]:
    """Every frame of the finished episodes through LeRobot's reader, after a kill."""
    lerobot = open_theirs(root)
    frames = sum(LENGTHS[:2])
    for position in range(frames):
        item = lerobot[position]
        if int(item["index"]) != position:
            raise SystemExit(f"{root}: frame {position} is {int(item['index'])}")
    return {"episodes": lerobot.meta.total_episodes, "frames read": frames}


if __name__ == "__main__":
    main()
