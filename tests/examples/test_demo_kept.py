"""What a run keeps is taken again only where everything that decided it is the same, by content."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import pipeline
from pipeline import Job, Run
from robot import ROBOT, config, text_tokenizer, untrained
from train import History, Plan

from moteur.data import FieldStatistics, RobotStatistics

JOB = Job(episodes=1, first_seed=0, held_out=1, tokenizer_steps=2, policy=Plan(steps=2), trials=2)


UNIT = FieldStatistics(0, (0.0,) * 4, (1.0,) * 4, (-1.0,) * 4, (1.0,) * 4)
STATISTICS = RobotStatistics(ROBOT.name, config().chunk, UNIT, UNIT)


def saved(folder: Path, *, changed: str = "", statistics: RobotStatistics = STATISTICS) -> Path:
    """A checkpoint of an untrained model, perhaps with one parameter changed."""
    model = untrained(statistics)
    if changed:
        model.get_parameter(changed).data.mul_(-1)
    model.save_pretrained(folder, tokenizer=text_tokenizer())
    return folder


def in_place(path: Path, change: Callable[[], None]) -> None:
    """Change a file; its size must stay, and its date is put back."""
    before = path.stat()
    change()
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_step_whose_file_was_replaced_by_another_of_the_same_size_is_done_again(tmp_path: Path) -> None:
    run, calls, need = Run(tmp_path, progress=False), [], tmp_path / "weights"

    def compute() -> int:
        need.write_text("mine")
        calls.append(1)
        return len(calls)

    assert [run.once("step", {}, compute, need) for _ in range(2)] == [1, 1]
    in_place(need, lambda: need.write_text("else") and None)
    assert run.once("step", {}, compute, need) == 2


def test_training_starts_again_when_the_weights_it_starts_from_or_the_set_have_another_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    class Data(list[int]):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__([0])

    def train_tokenizer(*_: object, **__: object) -> list[float]:
        trained.append("tokenizer")
        return [1.0]

    def train_policy(*_: object, **__: object) -> History:
        trained.append("policy")
        return History([1.0], [1.0])

    monkeypatch.setattr(pipeline, "Demonstrations", Data)
    monkeypatch.setattr(Run, "encode", lambda *_: None)
    monkeypatch.setattr(pipeline, "statistics", lambda *_: STATISTICS)
    monkeypatch.setattr(pipeline, "train_tokenizer", train_tokenizer)
    monkeypatch.setattr(pipeline, "train_policy", train_policy)
    root, start, kept = tmp_path / "set", saved(tmp_path / "start"), tmp_path / "run"
    root.mkdir()
    (root / "pictures.mp4").write_text("one")

    def learn(job: Job = JOB, start: Path | None = start) -> list[str]:
        trained.clear()
        pipeline.learn(Run(kept, progress=False), job, root, start)
        return list(trained)

    both = ["tokenizer", "policy"]
    kept.mkdir()
    assert learn() == both
    assert learn() == []
    assert learn(replace(JOB, trials=9)) == []  # decides nothing here
    in_place(start / "model.safetensors", lambda: saved(start, changed="action.action_in.bias") and None)
    assert learn() == both
    in_place(root / "pictures.mp4", lambda: (root / "pictures.mp4").write_text("two") and None)
    assert learn() == both
    assert learn(replace(JOB, policy=Plan(steps=2, seed=1))) == ["policy"]
    assert learn(start=None) == both


@pytest.mark.parametrize(
    "changed",
    [
        lambda folder, *_: saved(folder, changed="action.action_in.bias"),
        lambda folder, *_: saved(folder, changed="foresight.decoder.post_quant_conv.bias"),
        lambda folder, *_: saved(folder, statistics=replace(STATISTICS, state=replace(UNIT, mean=(0.5,) * 4))),
        lambda _, job, *__: job.update(trials=3),
        lambda _, job, *__: job.update(execute=6),
        lambda _, job, *__: job.update(held_out=2),
        lambda _, __, root, *___: (root / "pictures.mp4").write_text("two"),
        *(
            lambda _, __, ___, patch, name=name, value=value: patch.setattr(pipeline, name, value)
            for name, value in {
                "UNSEEN_SEED": 7,
                "ACTING": {"together": 10, "noise_seed": 1},
                "KERNEL": "onednn",
                "EVERY": 4,
                "PIXEL": 0.2,
                "LATENT": 0.2,
                "COMPARED": 8,
                "versions": lambda: {"torch": "another"},
            }.items()
        ),
    ],
)
def test_a_checkpoint_is_judged_again_when_anything_that_decides_the_judgement_changed(
    changed: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(pipeline, "judge", lambda *arguments: calls.append(arguments[-1]) or len(calls))
    root, run, sizes, folder = tmp_path / "set", Run(tmp_path, progress=False), {"trials": 2}, tmp_path / "checkpoint"
    root.mkdir()
    (root / "pictures.mp4").write_text("one")
    saved(folder)

    def judged() -> object:
        return pipeline.judged(run, replace(JOB, **sizes), root, folder, "trained here")

    assert [judged(), judged()] == [1, 1]
    changed(folder, sizes, root, monkeypatch)
    assert [judged(), judged()] == [2, 2]
