"""Time to build a block mask and the memory it keeps, beside the dense mask of the same layout.

    python benchmarks/masks.py

Both are built by `moteur.masks` from one layout of 16,384 positions, in turn, in one process on one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moteur.masks import Layout, Segment

LENGTH = 16_384
REPEATS = 9
BUILDS = 50  # block masks per repeat: a single one is too short to time on a busy machine
RESULT = Path(__file__).parent / "results" / "masks.json"


def layouts() -> dict[str, Layout]:
    """One layout without anything per sample, and the same with padding and packed documents."""
    segments = [
        Segment("und", 10_000),
        Segment("text", 2_000, causal=True),
        Segment("gen", 3_360),
        Segment("state", 1),
        Segment("action", 1_023),
    ]
    generator = torch.Generator().manual_seed(0)
    valid = {"und": torch.arange(10_000)[None] < 7_777}
    documents = torch.randint(0, 4, (1, LENGTH // 512), generator=generator).repeat_interleave(512, dim=1)
    return {"plain": Layout(segments), "ragged and packed": Layout(segments, valid=valid, documents=documents)}


def kept(mask: Tensor | BlockMask) -> int:
    """Bytes of all tensors that the mask keeps alive, including those that its `mask_mod` reads."""
    if isinstance(mask, Tensor):
        return mask.untyped_storage().nbytes()
    assert isinstance(mask.mask_mod, partial)
    positions = [held for held in mask.mask_mod.keywords.values() if held is not None]
    held = [*vars(mask).values(), *(tensor for position in positions for tensor in position)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if isinstance(t, Tensor)}
    return sum(storages.values())


def seconds(build: Callable[[], Any], number: int) -> float:
    """Mean wall time of `number` calls in a row."""
    start = time.perf_counter()
    for _ in range(number):
        build()
    return (time.perf_counter() - start) / number


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    milliseconds = [1000 * each for each in times]
    return {
        "median_ms": round(statistics.median(milliseconds), 3),
        "min_ms": round(min(milliseconds), 3),
        "max_ms": round(max(milliseconds), 3),
    }


def main() -> None:
    """Measure, print and write the result."""
    output = _arguments().output
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    for name, layout in layouts().items():
        seconds(layout.block_mask, 1)  # the first call pays for imports
        pairs = [(seconds(layout.block_mask, BUILDS), seconds(layout.dense, 1)) for _ in range(REPEATS)]
        block, dense = summary([pair[0] for pair in pairs]), summary([pair[1] for pair in pairs])
        cases[name] = {
            "block_mask": block | {"kept_bytes": kept(layout.block_mask())},
            "dense_mask": dense | {"kept_bytes": kept(layout.dense())},
            "times_faster": round(dense["median_ms"] / block["median_ms"], 1),
        }
    result = {
        "command": "python benchmarks/masks.py",
        "positions": LENGTH,
        "block_size": 128,
        "batch": 1,
        "repeats": REPEATS,
        "builds_per_repeat": {"block_mask": BUILDS, "dense_mask": 1},
        "device": "cpu, 1 thread",
        "machine": machine(torch.device("cpu")),
        "cases": cases,
    }
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT, help="where to write the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
