"""Memory and time of loading the 3B model at full size, beside plain reads of the same file: `make loading-benchmark`.

Writes a checkpoint in the released layout with random weights (6.5 GB), in bfloat16 with the released exceptions in
float32. Each measurement is a process of its own, which reports the largest resident memory the kernel saw (VmHWM):
that counts heap and touched pages of mapped files alike, and Python, PyTorch and transformers themselves.

What starting from a backbone takes, and converting the tokenizer, is measured by `loading_parts.py` beside this file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from version_work import sized

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "loading.json"
PAGE = 4096
ARMS = {
    "moteur": "InternVLAA1.from_pretrained: build, check, read into memory of its own; without the decoder",
    "read": "safetensors load_file(backend='pread'): every tensor in memory of its own",
    "moteur mapped, every page touched": "InternVLAA1.from_pretrained(mapped=True), then one byte of every page",
    "mapped, every page touched": "safetensors load_file, then one byte of every page",
}


def memory(field: str) -> int:
    """Bytes of a line of `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(arm: str, path: Path, sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """What one way of loading takes, in this process; `sizes` are those of a checkpoint that was cut (`sized`)."""
    start = time.perf_counter()
    if arm.startswith("moteur"):
        import transformers  # noqa: PLC0415 -- only this arm needs it, and its import is timed apart

        from moteur.recipes import InternVLAA1  # noqa: PLC0415

        assert transformers.Qwen3VLVisionModel
    imported, ran = time.perf_counter(), time.process_time()
    before = memory("VmRSS")
    if arm.startswith("moteur"):
        config = sized(sizes) if sizes else None
        model = InternVLAA1.from_pretrained(path.parent, config=config, mapped="mapped" in arm)
        if "touched" in arm:
            for parameter in model.parameters():
                parameter.detach().view(torch.uint8).reshape(-1)[::PAGE].max()
        held = sum(parameter.nbytes for parameter in model.parameters())
    else:
        tensors = load_file(path, backend="mmap" if arm.startswith("mapped") else "pread")
        held = sum(tensor.nbytes for tensor in tensors.values())
        if arm == "mapped, every page touched":
            for tensor in tensors.values():
                tensor.view(torch.uint8).reshape(-1)[::PAGE].max()
    seconds = time.perf_counter() - imported
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(time.process_time() - ran, 3),
        "seconds_of_imports_before": round(imported - start, 3),
        "held_bytes": held,
        "peak_resident_bytes": memory("VmHWM"),
        "resident_before_bytes": before,
    }


def drop_from_cache(path: Path) -> None:
    """Ask the kernel to forget the file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def runs(
    arm: str, path: Path, count: int, *, warm: bool, root: Path = ROOT, sizes: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Several measurements, each in a process of its own, of the moteur in the checkout `root`."""
    found = []
    sized_as = ["--sizes", json.dumps(sizes)] if sizes else []
    for _ in range(count):
        if not warm:
            drop_from_cache(path)
        child = subprocess.run(  # noqa: S603 -- our own program
            [sys.executable, __file__, "--arm", arm, "--folder", str(path.parent), *sized_as],
            env=os.environ | {"PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
            text=True,
        )
        found.append(json.loads(child.stdout))
        print(arm, "warm" if warm else "cold", found[-1], flush=True)
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread."""
    seconds = [run["seconds"] for run in found]
    peak, held = max(run["peak_resident_bytes"] for run in found), found[0]["held_bytes"]
    return {
        "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "held_bytes": held,
        "peak_resident_bytes": peak,
        "peak_resident_over_held": round(peak / held, 3),
        "resident_before_bytes": max(run["resident_before_bytes"] for run in found),
        "seconds_of_imports_before": statistics.median(run["seconds_of_imports_before"] for run in found),
    }


def update(path: Path, result: dict[str, Any]) -> None:
    """Replace these parts of a result; others stay."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(kept | result, indent=2) + "\n")


def main() -> None:
    """Measure, print and write the result; or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "loading")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", help="measure only this, in this process")
    parser.add_argument("--sizes", type=json.loads, help="of a checkpoint that was cut, as JSON")
    arguments = parser.parse_args()
    path = arguments.folder / "model.safetensors"
    if arguments.arm:
        print(json.dumps(measure(arguments.arm, path, arguments.sizes)))
        return
    from loading_files import write_checkpoint  # noqa: PLC0415 -- no part of what the measured processes import

    path = write_checkpoint(arguments.folder)
    arms = list(ARMS)
    warm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    runs("read", path, 1, warm=True)  # fills the cache
    for _ in range(arguments.repeats):
        for arm in arms:
            warm[arm] += runs(arm, path, 1, warm=True)
    cold = {arm: runs(arm, path, 1, warm=False) for arm in arms[:2]}
    result = {
        "command": "make loading-benchmark",
        "file": "released 3B layout, random weights, bfloat16 with the released exceptions in float32",
        "file_bytes": path.stat().st_size,
        "arms": ARMS,
        "peak_resident": "VmHWM of the whole process: heap, touched file pages, interpreter and libraries",
        "repeats": {"in_page_cache": arguments.repeats, "dropped_from_page_cache": 1},
        "device": f"cpu, {os.cpu_count()} cores, on a machine busy with other work",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "in_page_cache": {arm: summary(found) for arm, found in warm.items()},
        "dropped_from_page_cache": {arm: summary(found) for arm, found in cold.items()},
    }
    update(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
