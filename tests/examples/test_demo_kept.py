"""What a run keeps is taken again only where everything that decided it is the same, by content."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import digests
import pipeline
from pipeline import Job, Run
from robot import ROBOT, Door, Policy, config, save
from train import History, Plan

from moteur.data import FieldStatistics, RobotStatistics
from moteur.recipes import InternVLAA1

JOB = Job(episodes=1, first_seed=0, held_out=1, tokenizer_steps=2, policy=Plan(steps=2), trials=2)


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    unit = FieldStatistics(0, (0.0,) * 4, (1.0,) * 4, (-1.0,) * 4, (1.0,) * 4)
    model = InternVLAA1(config(), decoder=True).eval()
    return Policy(model, Door(config()), RobotStatistics(ROBOT.name, config().chunk, unit, unit))


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
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(pipeline, "statistics", lambda *_: policy.statistics)
    monkeypatch.setattr(pipeline, "train_tokenizer", train_tokenizer)
    monkeypatch.setattr(pipeline, "train_policy", train_policy)
    root, start, kept = tmp_path / "set", tmp_path / "start.safetensors", tmp_path / "run"
    root.mkdir()
    (root / "pictures.mp4").write_text("one")

    def learn(job: Job = JOB, start: Path | None = start) -> list[str]:
        trained.clear()
        pipeline.learn(Run(kept, progress=False), job, root, start)
        return list(trained)

    both = ["tokenizer", "policy"]
    kept.mkdir()
    save(start, policy, dtype=torch.float32, notes={})
    assert learn() == both
    assert learn() == []
    assert learn(replace(JOB, trials=9)) == []  # decides nothing here
    policy.model.action.action_in.bias.data[0] += 1
    in_place(start, lambda: save(start, policy, dtype=torch.float32, notes={}))
    assert learn() == both
    in_place(root / "pictures.mp4", lambda: (root / "pictures.mp4").write_text("two") and None)
    assert learn() == both
    assert learn(replace(JOB, policy=Plan(steps=2, seed=1))) == ["policy"]
    assert learn(start=None) == both


@pytest.mark.parametrize(
    "changed",
    [
        lambda policy, *_: policy.model.action.action_in.bias.data.mul_(-1),
        lambda policy, *_: policy.model.foresight.decoder.post_quant_conv.bias.data.mul_(-1),
        lambda _, job, *__: job.update(trials=3),
        lambda _, job, *__: job.update(execute=6),
        lambda _, job, *__: job.update(held_out=2),
        lambda _, __, root, *___: (root / "pictures.mp4").write_text("two"),
        *(
            lambda _, __, ___, patch, name=name, value=value: patch.setattr(pipeline, name, value)
            for name, value in {
                "UNSEEN_SEED": 7,
                "ACTING": {"together": 10, "noise_seed": 1},
                "EVERY": 4,
                "PIXEL": 0.2,
                "LATENT": 0.2,
                "COMPARED": 8,
                "versions": lambda: {"torch": "another"},
            }.items()
        ),
    ],
)
def test_a_policy_is_judged_again_when_anything_that_decides_the_judgement_changed(
    changed: Callable[..., object], policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(pipeline, "judge", lambda *arguments: calls.append(arguments[-1]) or len(calls))
    root, run, sizes = tmp_path / "set", Run(tmp_path, progress=False), {"trials": 2}
    root.mkdir()
    (root / "pictures.mp4").write_text("one")

    def judged() -> object:
        return pipeline.judged(run, replace(JOB, **sizes), root, policy, "trained here")

    assert [judged(), judged()] == [1, 1]
    changed(policy, sizes, root, monkeypatch)
    assert [judged(), judged()] == [2, 2]


def test_a_policy_is_told_from_another_by_its_statistics_too(policy: Policy) -> None:
    other = replace(policy.statistics, state=replace(policy.statistics.state, mean=(0.5,) * 4))
    assert digests.of_policy(policy) == digests.of_policy(Policy(policy.model, policy.door, policy.statistics))
    assert digests.of_policy(policy) != digests.of_policy(Policy(policy.model, policy.door, other))
