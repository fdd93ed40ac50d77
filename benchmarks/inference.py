"""How fast a policy acts: the inference session beside the plain way, in one process, on the same weights and inputs.

    python benchmarks/inference.py                      # float32, the released 3B sizes, random weights
    python benchmarks/inference.py --dtype bfloat16
    python benchmarks/inference.py --preset tiny        # seconds, to see that it works

The arms run in turn within each round, so that all see the same machine. Actions are compared in the same run; a
difference beyond the bounds ends the run with an error. The 3B model takes 12 GiB in float32, the session's own form
of it 10 GiB more. Results go to `benchmarks/results/inference_<device>_<dtype>.json` at the released 3B sizes, else
nowhere unless `--output` says so.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from inference_arms import Bench
from random_model import sized
from timing import in_turn, machine

from moteur.runtime.kernels import measured

RESULTS = Path(__file__).parent / "results"
PARTS = ("preprocess", "stages", "census", "operators", "solvers", "throughput")
PROTOCOL = {
    "weights": "random, norms of activations near one",
    "inputs": "batch 1, three views (64 image tokens each in 3B), an instruction that fills a third of its slot",
    "plain": "benchmarks/plain_policy.py",
    "steady state": "the latents of t-15 are in the history, the frames of t are encoded in the call",
    "frame pushed": "the latents of both times are in the history",
    "quantiles": "p90 from 10 rounds on, p99 from 100 on",
    "peak memory": "of the first call, beyond what was in use before it; freed memory is not always given back at once",
}


def main() -> None:
    """Measure, print, write; fail if actions disagree."""
    chosen = _arguments()
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/inference.py", *sys.argv[1:]]),
        "preset": chosen.preset,
        "depth": chosen.depth or "as released",
        "dtype": chosen.dtype,
        "device": chosen.device,
        "machine": machine(device),
        "protocol": PROTOCOL,
    }
    config = sized(chosen.preset, chosen.depth)
    if device.type == "cpu":
        result["machine"]["matrix_gflop_per_s"] = _rates(config.und.dim, config.und.mlp_dim)
    bench = Bench(config, dtype=dtype, device=device)
    result["setup"] = bench.setup
    arms, few = bench.arms(), max(1, chosen.rounds // 3)
    in_turn(arms, rounds=chosen.rounds, warmups=chosen.warmups, device=device)
    result["arms"] = {arm.name: arm.summary() for arm in arms}
    plain = result["arms"][arms[0].name]["median_ms"]
    result["times_plain"] = {name: round(plain / found["median_ms"], 2) for name, found in result["arms"].items()}
    result["agreement"] = bench.agreement(arms)
    parts = {
        "preprocess": lambda: bench.preprocessing(chosen.rounds),
        "stages": lambda: bench.beside_transformers(few),
        "census": bench.census,
        "operators": bench.operators,
        "solvers": lambda: bench.solvers(few),
        "throughput": lambda: bench.throughput(chosen.batch, chosen.batch_rounds),
    }
    for name in chosen.parts:
        result[name] = parts[name]()
    for name, found in result.get("census", {}).items():
        found["gflop_per_s"] = round(found["gflop"] * 1e3 / result["arms"][name]["median_ms"], 1)
    full = chosen.preset == "3B" and chosen.depth is None
    output = chosen.output or (RESULTS / f"inference_{device.type}_{chosen.dtype}.json" if full else None)
    if output is not None:
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(result)
    if not all(result.get(part, {}).get("within_bound", True) for part in ("agreement", "throughput")):
        sys.exit("actions disagree")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="3B", choices=["3B", "2B", "tiny"])
    parser.add_argument("--depth", type=int, help="cut experts and vision tower to so many layers")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmups", type=int, default=1, help="rounds after the first call that do not count")
    parser.add_argument("--batch", type=int, default=8, help="of the throughput arms")
    parser.add_argument("--batch-rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure besides the calls")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def _rates(inner: int, outer: int) -> dict[str, dict[str, float]]:
    """What this CPU reaches on the largest map of the model, for 256 rows, by number format and kernel."""
    rows, threads = 256, torch.get_num_threads()
    work = 2 * rows * inner * outer / 1e9
    return {
        str(dtype).removeprefix("torch."): {
            kernel: round(work / seconds, 1) for kernel, seconds in measured(rows, inner, outer, dtype, threads).items()
        }
        for dtype in (torch.float32, torch.bfloat16)
    }


def _print(result: dict[str, Any]) -> None:
    """The figures that matter, as tables."""
    errors = result["agreement"]["max_abs_error"]
    print(f"{'':24}{'median':>10}{'min':>10}{'max':>10}{'first':>10}  times plain  max error")
    for name, found in result["arms"].items():
        row = "".join(f"{found[key]:10.1f}" for key in ("median_ms", "min_ms", "max_ms", "first_call_ms"))
        print(f"{name:24}{row}{result['times_plain'][name]:13.2f}  {errors[name]:.1e}")
    if "stages" in result:
        print("\nstages of a steady-state call, ms, then two of them alone, beside those of transformers:")
        medians = {name: found["median_ms"] for name, found in result["stages"]["session"].items()}
        medians |= {name: found["median_ms"] for name, found in result["stages"]["rivals"].items()}
        for name, median in medians.items():
            print(f"  {name:30}{median:10.1f}")
    if "census" in result:
        print("\nkernel operations, those that depend on values, GFLOP, GFLOP/s:")
        for name, found in result["census"].items():
            waits = sum(found["data_dependent"].values())
            rates = f"{found['gflop']:10}{found['gflop_per_s']:8}"
            print(f"  {name:30}{found['kernel_operations']:8}{waits:6}{rates}")
    print(
        *(f"  {share:7.1%} of a steady-state call: {name}" for name, share in result.get("operators", {}).items()),
        sep="\n",
    )
    if "solvers" in result:
        print("\nsolvers: ms, rms distance from the standard, and from the finest:")
        for name, found in result["solvers"].items():
            distances = f"{found['rms_from_standard']:10.4f}{found['rms_from_finest']:10.4f}"
            print(f"  {name:30}{found['median_ms']:10.1f}{distances}")
    if "throughput" in result:
        batch = result["throughput"]["batch"]
        print(f"\nbatch {batch}: ms a call, samples a second:")
        for name, found in result["throughput"]["arms"].items():
            print(f"  {name:30}{found['median_ms']:10.1f}{batch * 1e3 / found['median_ms']:10.3f}")


if __name__ == "__main__":
    main()
