"""The demo: record, train, act, and write the report to ``runs/demo/report.html``.

``python examples/conveyor/demo.py`` starts from the small checkpoint beside this file, trains on from there, and acts.
``--from-nothing`` ignores the checkpoint. What is in the folder already is not done again.
"""

import argparse
import time
from pathlib import Path

import digests
import torch
from pipeline import KERNEL, SHIPPED, UNSEEN_SEED, Job, Run, judged, learn, load, record, versions, without_training
from realtime import race
from robot import transform
from rollouts import rollouts
from story import Findings, tell
from train import Plan

from moteur.runtime import Policy

JOB = Job(
    episodes=160,
    first_seed=100_000,
    held_out=24,
    tokenizer_steps=150,
    policy=Plan(steps=400, rate=2e-4, warmup=40),
    trials=50,
)

FILMS = 3  # the first unseen seeds, however they end
RACES = 5  # the first unseen seeds, acted by an inference session and the plain model side by side


def demo(folder: Path, job: Job, start: Path | None, *, progress: bool = True) -> Path:
    """Run everything that is not done yet.

    Args:
        folder: Where recordings, weights, results and the report go.
        job: Sizes.
        start: Checkpoint to start from, or None to start from random weights.
        progress: Show progress bars.

    Returns:
        Where the report is.
    """
    begin = time.perf_counter()
    run = Run(folder, progress=progress)
    learned_from, held_out = record(run, job)
    path, losses = learn(run, job, learned_from, start)
    model = load(path)
    checkpoints = {"untrained": without_training(run, transform(model).statistics)}
    if start is not None:
        checkpoints["shipped"] = start
    checkpoints["trained here"] = path
    results = {label: judged(run, job, held_out, folder, label) for label, folder in checkpoints.items()}
    policy, seeds = Policy.from_pretrained(path, session={"kernel": KERNEL}), range(UNSEEN_SEED, UNSEEN_SEED + FILMS)
    films = rollouts(policy, seeds, execute=job.execute, film=FILMS, label="filming", progress=progress)
    raced = run.once(
        "raced",
        {
            "checkpoint": digests.of_path(path),
            "races": [UNSEEN_SEED, RACES],
            "execute": job.execute,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        lambda: race(model, range(UNSEEN_SEED, UNSEEN_SEED + RACES), execute=job.execute).summary(),
    )
    findings = Findings(
        job=job,
        losses=losses,
        results=results,
        raced=raced,
        seconds=run.seconds,
        reused=run.reused,
        start=start,
        total=time.perf_counter() - begin,
    )
    report = tell(findings, model, run.held_out(job, held_out, model), films, folder / "report.html")
    for line in findings.summary():
        print(line)
    print(f"report: {report}")
    return report


def main() -> None:
    """Read the command line and run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"))
    parser.add_argument("--from-nothing", action="store_true", help="do not start from the shipped checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 8))
    demo(arguments.folder, JOB, None if arguments.from_nothing else SHIPPED)


if __name__ == "__main__":
    main()
