"""The main job: record, train, act, and write the report to ``runs/demo/report.html``.

``python examples/conveyor/demo.py`` starts from the small checkpoint beside this file, trains on from there, and acts.
``--from-nothing`` ignores the checkpoint. What is in the folder already is not done again.
"""

import argparse
import time
from pathlib import Path

import digests
import torch
from pipeline import SHIPPED, UNSEEN_SEED, Job, Run, judged, learn, record, untrained, versions
from policy import rollouts
from realtime import race
from robot import load
from story import Findings, tell
from train import Plan

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
        start: Weights to start from, or None to start from random ones.
        progress: Show progress bars.

    Returns:
        Where the report is.
    """
    begin = time.perf_counter()
    run = Run(folder, progress=progress)
    learned_from, held_out = record(run, job)
    path, losses = learn(run, job, learned_from, start)
    policy = load(path)
    policies = {"untrained": untrained(policy.statistics)}
    if start is not None:
        policies["shipped"] = load(start)
    policies["trained here"] = policy
    results = {label: judged(run, job, held_out, policy, label) for label, policy in policies.items()}
    seeds = range(UNSEEN_SEED, UNSEEN_SEED + FILMS)
    films = rollouts(policy, seeds, execute=job.execute, film=FILMS, label="filming", progress=progress)
    raced = run.once(
        "raced",
        {
            "policy": digests.of_policy(policy),
            "races": [UNSEEN_SEED, RACES],
            "execute": job.execute,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        lambda: race(policy, range(UNSEEN_SEED, UNSEEN_SEED + RACES), execute=job.execute).summary(),
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
    report = tell(findings, policy, run.held_out(job, held_out, policy), films, folder / "report.html")
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
