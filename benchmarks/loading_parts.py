"""Memory and time of starting from a backbone, of converting the tokenizer's files, and of a session, at full size.

``python benchmarks/loading_parts.py backbone`` writes a Qwen3-VL backbone (4.1 GB) and a tokenizer with random weights
in bfloat16, and measures `from_backbone` from there; ``... convert`` writes the tokenizer as TorchScript (0.2 GB) and
measures the command that turns it into safetensors; ``... session`` writes a released checkpoint (6.5 GB) and measures
an inference session that is loaded from it and computes in float32. Each measurement is a process of its own; each
replaces its own part of `benchmarks/results/loading.json`. With ``--preset tiny --result elsewhere.json`` all can be
tried in a minute.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from loading import RESULT, ROOT, memory, summary, update

PARTS = {
    "backbone": "InternVLAA1.from_backbone: vision and und from a backbone's file, the image encoder from its own, "
    "gen, act and heads from the seed; held in bfloat16, without the decoder",
    "convert": "moteur.tokenizers.convert_weights: encoder.jit and decoder.jit into safetensors; held_bytes are "
    "those of both files",
    "session": "InferenceSession.from_pretrained of a checkpoint in the released layout, computing in float32: "
    "held_bytes are those of the model's parameters in float32; then one call of act, both frames encoded",
}


def start(folder: Path, name: str) -> dict[str, Any]:
    """What `from_backbone` takes, in this process."""
    begin = time.perf_counter()
    import transformers  # noqa: PLC0415 -- its import is timed apart

    from moteur.recipes import InternVLAA1, preset  # noqa: PLC0415

    assert transformers.Qwen3VLVisionModel
    imported = time.perf_counter()
    before = memory("VmRSS")
    model = InternVLAA1.from_backbone(folder, config=preset(name), seed=0, cosmos=folder / "cosmos")  # type: ignore[arg-type]
    seconds = time.perf_counter() - imported
    held = sum(parameter.nbytes for parameter in model.parameters())
    return taken(seconds, imported - begin, held, before)


def convert(folder: Path) -> dict[str, Any]:
    """What the conversion takes, in this process."""
    begin = time.perf_counter()
    from moteur.tokenizers import convert_weights  # noqa: PLC0415 -- its import is timed apart

    imported = time.perf_counter()
    before = memory("VmRSS")
    written = convert_weights(folder, folder / "converted", overwrite=True)
    seconds = time.perf_counter() - imported
    return taken(seconds, imported - begin, sum(path.stat().st_size for path in written), before)


def session(folder: Path) -> dict[str, Any]:
    """What a session without a model beside it takes, in this process."""
    begin = time.perf_counter()
    from random_model import processed  # noqa: PLC0415 -- their imports are timed apart

    from moteur.recipes import InternVLAA1  # noqa: PLC0415
    from moteur.recipes.checkpoints.fresh import build_weightless  # noqa: PLC0415
    from moteur.runtime import InferenceSession  # noqa: PLC0415

    imported = time.perf_counter()
    before = memory("VmRSS")
    acting = InferenceSession.from_pretrained(folder, dtype="float32")
    seconds = time.perf_counter() - imported
    assert acting.dtype == torch.float32
    plain = build_weightless(InternVLAA1, acting.config, decoder=False)
    held = 4 * sum(parameter.numel() for parameter in plain.parameters())
    found = taken(seconds, imported - begin, held, before)
    acting.act(processed(acting.config, batch=1), generator=torch.Generator().manual_seed(0))
    return found | {"peak_resident_with_a_call_bytes": memory("VmHWM")}


def taken(seconds: float, imports: float, held: int, before: int) -> dict[str, Any]:
    """The figures of one process, in the form of `loading.py`."""
    return {
        "seconds": round(seconds, 3),
        "seconds_of_imports_before": round(imports, 3),
        "held_bytes": held,
        "peak_resident_bytes": memory("VmHWM"),
        "resident_before_bytes": before,
    }


def main() -> None:
    """Write what is needed, measure, print and keep the result; or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--preset", default="3B", choices=["3B", "tiny"])
    parser.add_argument("--folder", type=Path, help="for the files (default: runs/loading/PART_PRESET)")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.folder or ROOT / "runs" / "loading" / f"{given.part}_{given.preset}"
    if given.child:
        measure = {"backbone": partial(start, name=given.preset), "convert": convert, "session": session}
        print(json.dumps(measure[given.part](folder)))
        return
    from loading_files import (  # noqa: PLC0415 -- no part of the measured processes
        write_backbone,
        write_checkpoint,
        write_cosmos,
    )

    from moteur.recipes import InternVLAA1, preset  # noqa: PLC0415

    config = preset(given.preset)
    if given.part == "session" and given.preset == "3B":
        paths = [write_checkpoint(folder)]
    elif given.part == "session":
        InternVLAA1(config).save_pretrained(folder)
        paths = [folder / "model.safetensors"]
    elif given.part == "backbone":
        paths = [write_backbone(folder, config), *write_cosmos(folder / "cosmos", config, torchscript=False)]
    else:
        paths = write_cosmos(folder, config, torchscript=True)
    again = [sys.executable, __file__, given.part, "--preset", given.preset, "--folder", str(folder), "--child"]
    found: list[dict[str, Any]] = []
    for _ in range(given.repeats):
        child = subprocess.run(again, check=True, capture_output=True, text=True)  # noqa: S603 -- our own program
        found.append(json.loads(child.stdout))
        print(found[-1], flush=True)
    result = {
        "command": f"python benchmarks/loading_parts.py {given.part}",
        "what": PARTS[given.part],
        "preset": given.preset,
        "file_bytes": sum(path.stat().st_size for path in paths),
        "repeats": given.repeats,
        "device": f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        **summary(found),
    }
    if given.part == "session":
        result["peak_resident_with_a_call_bytes"] = max(run["peak_resident_with_a_call_bytes"] for run in found)
    update(given.result, {given.part: result})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
