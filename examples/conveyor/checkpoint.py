"""Make the checkpoint that the demo starts from, and record how: ``python examples/conveyor/checkpoint.py``.

The same steps as the demo's, from random weights and for longer: about an hour and a half on two cores. The weights
are stored in half precision and judged as stored; tokenizer, schema and statistics are in the same folder. An
interrupted run goes on where it was.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import digests
import torch
from pipeline import RECORD, SHIPPED, Job, Run, judged, learn, load, record, versions, without_training
from robot import text_tokenizer, transform
from train import Plan

from moteur.files import write_whole

JOB = Job(
    episodes=1600,
    first_seed=0,
    held_out=40,
    tokenizer_steps=1800,
    policy=Plan(steps=5500, rate=1e-3, warmup=300),
    trials=100,
    compiled=True,
)
LIMIT = 10 * 2**20  # bytes


def make(folder: Path, job: Job, target: Path, record_in: Path, *, progress: bool = True) -> None:
    """Train from nothing, store the checkpoint in the folder `target`, judge it, and write the record.

    Raises:
        ValueError: If the weights take more than 10 MiB.
    """
    run = Run(folder, progress=progress)
    learned_from, held_out = record(run, job)
    path, losses = learn(run, job, learned_from, None)
    model = load(path)
    model.half().save_pretrained(target, tokenizer=text_tokenizer(), weights_licence="Apache-2.0, as this repository")
    weights = target / "model.safetensors"
    size = weights.stat().st_size
    if size > LIMIT:
        raise ValueError(f"target: expected weights of at most {LIMIT} bytes, got {size}")
    checkpoints = {"untrained": without_training(run, transform(model).statistics), "checkpoint": target}
    results = {name: judged(run, job, held_out, folder, name) for name, folder in checkpoints.items()}
    curves = {f"{name}_loss_per_100_steps": means(losses[name]) for name in ("tokenizer", "action", "foresight")}
    findings = {
        "command": "make checkpoint",
        "device": f"CPU, {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "job": asdict(job),
        "moments": losses["pictures"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": size,
        "weights": digests.of_path(weights),
        "stored_as": "float16",
        "seconds": {name: round(seconds, 1) for name, seconds in run.seconds.items()},
        **curves,
        **results,
    }
    record_in.parent.mkdir(parents=True, exist_ok=True)
    write_whole(record_in, json.dumps(findings, indent=2) + "\n")
    print(json.dumps({name: findings[name] for name in ("bytes", "seconds", "untrained", "checkpoint")}, indent=2))


def means(values: list[float], width: int = 100) -> list[float]:
    """Means of consecutive stretches, rounded: a curve that a person can read."""
    pieces = [values[start : start + width] for start in range(0, len(values), width)]
    return [round(sum(piece) / len(piece), 5) for piece in pieces]


def main() -> None:
    """Read the command line and make the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/checkpoint"))
    arguments = parser.parse_args()
    make(arguments.folder, JOB, SHIPPED, RECORD)


if __name__ == "__main__":
    main()
