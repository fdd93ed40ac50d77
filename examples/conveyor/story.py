"""What the report says: findings turned into a page, every number beside what it means."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demonstrations import Demonstrations
from measure import EVERY, PIXEL, Success
from pictures import animation, chunks, curves, futures, intervals
from pipeline import RECORD, Job, versions
from report import Page
from robot import transform
from rollouts import Episode

from moteur.files import write_whole
from moteur.recipes import InternVLAA1

BAR = 0.7  # foresight error over that of "nothing moves" at most
NAMES = {
    "untrained": "untrained (random weights)",
    "shipped": "shipped checkpoint, as it comes",
    "trained here": "trained in this run",
}


@dataclass(frozen=True)
class Findings:
    """Everything measured in a run, and how it came about."""

    job: Job
    losses: dict[str, Any]
    results: dict[str, dict[str, Any]]
    raced: dict[str, Any]
    seconds: dict[str, float]
    reused: list[str]
    start: Path | None
    total: float

    def success(self) -> dict[str, Success]:
        """Success of each set of weights."""
        return {name: Success(**result["success"]) for name, result in self.results.items()}

    def foresight(self) -> dict[str, dict[str, float]]:
        """Foresight errors of the weights trained in this run."""
        return self.results["trained here"]["foresight"]

    def verdicts(self) -> list[tuple[bool, str]]:
        """Each requirement: whether it is met, and the numbers it is judged by."""
        success = self.success()
        trained, untrained = success["trained here"], success["untrained"]
        above = trained.clearly_above(untrained)
        intervals = "do not overlap" if above else "overlap, so training is not shown to help"
        ratio = self.foresight()["pixels"]["ratio"]
        acting = (
            f"Success {percent(trained)} after training, {percent(untrained)} with random weights, on the same "
            f"{trained.trials} unseen seeds: the intervals {intervals}."
        )
        seeing = (
            f"Foresight error {ratio:.2f} of that of “nothing moves”, over pixels that change; "
            f"at most {BAR} is asked for."
        )
        return [(above, acting), (ratio <= BAR, seeing)]

    def summary(self) -> list[str]:
        """The verdicts as plain lines."""
        return [f"{'met   ' if met else 'MISSED'} {words}" for met, words in self.verdicts()]


def percent(success: Success) -> str:
    """Rate and interval in words."""
    return f"{100 * success.rate:.0f} % (95 % interval {100 * success.low:.0f} to {100 * success.high:.0f} %)"


def tell(
    findings: Findings, model: InternVLAA1, held_out: Demonstrations, films: Sequence[Episode], path: Path
) -> Path:
    """Write the report; return its path."""
    page = Page("A tiny InternVLA-A1 on a moving belt")
    _opening(page, findings)
    _acting(page, findings, films)
    _latency(page, findings.raced)
    _foresight(page, findings, model, held_out)
    _chunks(page, findings, model, held_out)
    _training(page, findings)
    if findings.start is not None:
        _shipped_training(page, RECORD)
    _account(page, findings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.render())
    return path


def _opening(page: Page, findings: Findings) -> None:
    page.text(
        "A gripper must take the block that a sentence names off a moving belt and put it in the bin, from three "
        "64×64 cameras and its own pose. The model predicts the frames of half a second ahead (t+15 at 30 Hz) and a "
        "chunk of actions; the code is that of the 3B recipe, at small sizes."
    )
    for met, words in findings.verdicts():
        page.text(("Met. " if met else "Missed. ") + words, kind="verdict" if met else "verdict missed")
    page.heading("Which weights did what")
    if findings.start is None:
        page.text("This run started from random weights: everything below was learned in it.")
    else:
        page.text(
            "This run started from the checkpoint shipped in <code>examples/conveyor/checkpoint/</code>, which "
            "<code>make checkpoint</code> made in a longer run (recorded in "
            "<code>benchmarks/results/conveyor_checkpoint.json</code>). Its tokenizer's encoder is used as it is; its "
            f"decoder was trained for {findings.job.tokenizer_steps} more steps and the policy for "
            f"{findings.job.policy.steps} more, on demonstrations recorded here that the checkpoint never saw. "
            "Pictures, chunks and films below are of the weights trained in this run."
        )


def _acting(page: Page, findings: Findings, films: Sequence[Episode]) -> None:
    job = findings.job
    page.heading("Acting in closed loop")
    page.text(
        f"Each row acted on the same {job.trials} seeds, which no recording used, from the same noise. A new chunk was "
        f"asked for every {job.execute} steps. “wrong block”: another block is in the bin; “lost”: the named one left "
        "the belt or passed out of reach; “time”: five seconds were over."
    )
    rows = []
    for name, success in findings.success().items():
        others = ", ".join(f"{count} {outcome}" for outcome, count in success.outcomes.items() if outcome != "success")
        mean = "–" if success.mean_steps is None else f"{success.mean_steps / 30:.1f} s"
        interval = f"{100 * success.low:.0f} – {100 * success.high:.0f} %"
        rows.append([NAMES[name], f"{success.successes} of {success.trials}", interval, mean, others or "–"])
    page.table(["weights", "success", "95 % interval (Wilson)", "mean time of successes", "other endings"], rows)
    success = findings.success()
    if "shipped" in success and not success["trained here"].clearly_above(success["shipped"]):
        page.text(
            "That the short training of this run helps the shipped weights to act is not shown: intervals overlap."
        )
    page.picture(intervals({NAMES[name]: value for name, value in findings.success().items()}), "success rates")
    page.text("The first unseen seeds, in real time, however they ended:")
    for episode in films:
        words = (
            f"“{episode.instruction}”, unseen seed {episode.seed}: {episode.outcome} after {episode.steps / 30:.1f} s"
        )
        page.picture(animation(episode.film), "an episode", kind="gif", caption=words)


def _latency(page: Page, raced: dict[str, Any]) -> None:
    page.heading("Latency: an inference session beside the plain model")
    page.text(
        f"{raced['episodes']} of these episodes were acted once more, one at a time, by an inference session that "
        f"encodes each frame as it arrives ({raced['successes']} succeeded). At each of its {raced['calls']} calls the "
        "plain model computed the chunk as well. The largest difference between two actions of a call is "
        f"{raced['median_difference']:.1e} in the median and {raced['largest_difference']:.1e} at most, in units of "
        "the actions' deviation: rounding, which the flow magnifies now and then."
    )
    rows = [[f"{raced['plain_ms']:.0f} ms", f"{raced['session_ms']:.0f} ms", f"{raced['push_ms']:.0f} ms"]]
    page.table(["plain model, a call", "session, a call", "session, encoding a frame"], rows)


def _foresight(page: Page, findings: Findings, model: InternVLAA1, held_out: Demonstrations) -> None:
    page.heading("Foresight: t, predicted t+15, true t+15")
    moments = held_out.moments(EVERY)
    index = moments[torch.linspace(0.04, 0.96, 6).mul(len(moments)).long()]
    images = model.imagine(held_out.batch(index).inputs, decode=True).images
    assert images is not None
    now, future = held_out.pair(index)
    page.picture(futures(now, images, future), "frames of t, predicted t+15, true t+15")
    page.text(
        f"Mean squared error on {findings.job.held_out} held-out recordings, over pixels of which a colour changes by "
        f"more than {PIXEL:.0%} of its range between t and t+15. “Nothing moves” takes the frame of t for that "
        "of t+15; it is a weak rival, a constant picture that knows nothing of the scene has 0.44 of its error. "
        "“Copied” is the true future through the tokenizer, the least a prediction through it can reach. "
        "In latents: over cells whose mean square change exceeds a tenth of the latents' variance."
    )
    columns = ("predicted", "nothing_moves", "copied")
    rows = [
        [name, *(f"{error[column]:.4f}" for column in columns), f"{error['ratio']:.2f}", f"{error['changing']:.1%}"]
        for name, error in findings.foresight().items()
    ]
    names = {"pixels": "all cameras, pixels", "latents": "all cameras, latents"}
    rows = [[names.get(row[0], f"{row[0]} camera, pixels"), *row[1:]] for row in rows]
    page.table(["", "predicted", "nothing moves", "copied", "predicted / nothing moves", "share that changes"], rows)


def _chunks(page: Page, findings: Findings, model: InternVLAA1, held_out: Demonstrations) -> None:
    page.heading("Action chunks against the expert's")
    index = torch.linspace(0.03, 0.9, 4).mul(len(held_out)).long()
    moments, poses, robot = held_out.batch(index), held_out.poses(index), transform(model)
    predicted = model.act(moments.inputs, generator=torch.Generator().manual_seed(0))
    commands, expert = (
        robot.commands(actions, poses).clamp(-1, 1).float() for actions in (predicted, moments.targets.actions)
    )
    assert moments.targets.valid_steps is not None
    page.picture(chunks(commands, expert, moments.targets.valid_steps, held_out.instructions(index)), "action chunks")
    error = findings.results["trained here"]["chunk_error"]
    page.text(
        f"Commands on the action's scale, at moments of held-out recordings. Mean squared difference over the "
        f"recordings: {error:.3f} of the actions' variance."
    )


def _training(page: Page, findings: Findings) -> None:
    page.heading("Loss curves of this run")
    losses = findings.losses
    series = {"tokenizer: copying frames": losses["tokenizer"], "action (flow matching)": losses["action"]}
    page.picture(curves(series | {"foresight (latents of t+15)": losses["foresight"]}), "loss curves")
    plan = findings.job.policy
    page.text(
        f"Policy: {plan.steps} steps of {plan.batch} samples out of {losses['pictures']} moments of "
        f"{findings.job.episodes} demonstrations, AdamW, peak rate {plan.rate:g}."
    )


def _shipped_training(page: Page, path: Path) -> None:
    page.heading("Loss curves of the shipped checkpoint's training")
    record = json.loads(path.read_text())
    names = {"tokenizer": "tokenizer: copying frames", "action": "action", "foresight": "foresight"}
    series = {title: record[f"{name}_loss_per_100_steps"] for name, title in names.items()}
    page.picture(curves(series, unit="hundreds of steps"), "loss curves of the shipped checkpoint's training")
    job, success = record["job"], Success(**record["checkpoint"]["success"])
    page.text(
        f"As recorded: {job['episodes']} demonstrations, {job['tokenizer_steps']} steps of the tokenizer, "
        f"{job['policy']['steps']} of the policy ({record['seconds']['policy'] / 60:.0f} min). "
        f"Success then: {percent(success)} of {success.trials} unseen episodes. {record.get('note', '')}"
    )


def _account(page: Page, findings: Findings) -> None:
    page.heading("Time and versions")
    rows = [[name.replace("_", " "), f"{seconds:.0f} s"] for name, seconds in findings.seconds.items()]
    page.table(["step", "took"], rows)
    if findings.reused:
        page.text("Taken from an earlier run in the same folder: " + ", ".join(findings.reused).replace("_", " ") + ".")
    page.text(
        f"This call took {findings.total / 60:.1f} min, on {torch.get_num_threads()} threads of {platform.machine()}."
    )
    page.text(", ".join(f"{name} {number}" for name, number in versions().items()))
