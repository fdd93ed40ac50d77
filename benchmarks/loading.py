"""Memory and time of loading the 3B model at full size, beside plain reads of the same file: `make loading-benchmark`.

Writes a checkpoint in the released layout with random weights (6.5 GB), in bfloat16 with the released exceptions in
float32. Each measurement is a process of its own, which reports the largest resident memory the kernel saw (VmHWM):
that counts heap and touched pages of mapped files alike, and Python, PyTorch and transformers themselves.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "tests" / "golden" / "released_shapes_3b.json"
RESULT = ROOT / "benchmarks" / "results" / "loading.json"
SECOND_NAME = "model.qwen3_vl_with_expert.und_expert.model.language_model.embed_tokens.weight"
WIDE = (  # what the released runs hold in float32
    *("input_layernorm.", "post_attention_layernorm.", "und_expert.model.language_model.norm.", "action_out_proj."),
)
PAGE = 4096
ARMS = {
    "moteur": "InternVLAA1.from_pretrained: build, check, read into memory of its own; without the decoder",
    "read": "safetensors load_file(backend='pread'): every tensor in memory of its own",
    "moteur mapped, every page touched": "InternVLAA1.from_pretrained(mapped=True), then one byte of every page",
    "mapped, every page touched": "safetensors load_file, then one byte of every page",
}


def write_checkpoint(folder: Path) -> Path:
    """Every released tensor, stored once, with random values of plausible size; kept if it is there already."""
    path = folder / "model.safetensors"
    shapes = {name: shape for name, shape in json.loads(SHAPES.read_text()).items() if name != SECOND_NAME}
    widths = {name: 4 if any(part in name for part in WIDE) else 2 for name in shapes}
    header, place = {}, 0
    for name in sorted(shapes, key=lambda name: -widths[name]):
        size = prod(shapes[name]) * widths[name]
        dtype = {2: "BF16", 4: "F32"}[widths[name]]
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [place, place + size]}
        place += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    if path.is_file() and path.stat().st_size == 8 + len(text) + place:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            left = prod(shapes[name])
            while left:
                count = min(left, 2**24)
                bits = draw.integers(0, 2**16, count, dtype=np.uint16)
                small = (bits & 0x807F) | 0x3C00  # any sign, any mantissa, magnitude 1/128 to 1/64
                file.write((small.astype(np.uint32) << 16 if widths[name] == 4 else small).tobytes())
                left -= count
    (folder / "config.json").write_text(json.dumps({"type": "qwena1", "dtype": "bfloat16", "chunk_size": 50}))
    return path


def memory(field: str) -> int:
    """Bytes of a line of `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(arm: str, path: Path) -> dict[str, Any]:
    """What one way of loading takes, in this process."""
    start = time.perf_counter()
    if arm.startswith("moteur"):
        import transformers  # noqa: PLC0415 -- only this arm needs it, and its import is timed apart

        from moteur.recipes import InternVLAA1  # noqa: PLC0415

        assert transformers.Qwen3VLVisionModel
    imported = time.perf_counter()
    before = memory("VmRSS")
    if arm.startswith("moteur"):
        model = InternVLAA1.from_pretrained(path.parent, mapped="mapped" in arm)
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


def runs(arm: str, path: Path, count: int, *, warm: bool) -> list[dict[str, Any]]:
    """Several measurements, each in a process of its own."""
    found = []
    for _ in range(count):
        if not warm:
            drop_from_cache(path)
        child = subprocess.run(  # noqa: S603 -- our own program
            [sys.executable, __file__, "--arm", arm, "--folder", str(path.parent)],
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


def main() -> None:
    """Measure, print and write the result; or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "loading")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", help="measure only this, in this process")
    arguments = parser.parse_args()
    path = arguments.folder / "model.safetensors"
    if arguments.arm:
        print(json.dumps(measure(arguments.arm, path)))
        return
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
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
