"""Each kind of pad flag, from a set on disk to the loss: what it marks is not learned from, and without it would be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moteur.recipes.collate import Collator
from moteur.recipes.outputs import Losses
from torch import Tensor

from moteur.data import Robot, RobotDataset, RobotTransform, Sample, Window, compute_statistics
from moteur.recipes import InternVLAA1, Processor, preset

CONFIG = preset("tiny")
WINDOW = Window(offsets=(-3, 0, 3), steps=CONFIG.chunk)
FIRST, MIDDLE, LAST = 0, 4, 8  # of an episode of nine frames, with three of history and of future


class Words:
    """A tokenizer that knows numbers of letters."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[len(word) + 10 for word in line.split()] for line in text]}


@pytest.fixture(scope="module")
def samples(robot: Robot, toy_root: Path) -> Callable[[str, int], Sample]:
    """Prepared samples of a robot of three dimensions and two cameras, and of a watcher without actions."""
    watcher = replace(robot, name="watcher", action=(), relative=())
    sets: dict[str, RobotDataset] = {}
    for schema in (robot, watcher):
        statistics = compute_statistics([toy_root], schema, steps=CONFIG.chunk, progress=False)
        transform = RobotTransform(
            schema, statistics, window=WINDOW, size=CONFIG.frame_size, dims=CONFIG.action_dim, images="float32"
        )
        sets[schema.name] = RobotDataset(toy_root, transform)
    return lambda name, position: sets[name][position]


@pytest.fixture(scope="module")
def model() -> InternVLAA1:
    torch.manual_seed(0)
    return InternVLAA1(CONFIG)


def losses(model: InternVLAA1, *batch: Sample, repeated_history: bool = False) -> Losses:
    collate = Collator(Processor(CONFIG, Words()), repeated_history=repeated_history)
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(len(batch), CONFIG.chunk, CONFIG.action_dim, generator=draw)
    return model.loss(*collate(batch).to("cpu"), noise=noise, tau=torch.rand(len(batch), generator=draw))


def after(value: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: change(value(*arguments))


def same(found: Losses, expected: Losses) -> None:
    assert torch.isfinite(expected.total)
    for name in ("total", "action", "foresight"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def actions_ruined_where(
    monkeypatch: pytest.MonkeyPatch, model: InternVLAA1, where: tuple[Any, ...]
) -> Callable[[], None]:
    """Make the network say something that is no number for these steps and dimensions."""

    def ruin(velocity: Tensor) -> Tensor:
        mask = torch.zeros_like(velocity, dtype=torch.bool)
        mask[where] = True
        return torch.where(mask, torch.nan, velocity)

    return lambda: monkeypatch.setattr(model.action, "velocity", after(model.action.velocity, ruin))


def test_a_step_past_the_end_of_the_episode(
    model: InternVLAA1, samples: Callable[[str, int], Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = samples("toy", LAST - 1)
    assert sample.valid_steps.tolist() == [True] * 2 + [False] * (CONFIG.chunk - 2)
    expected = losses(model, sample)
    actions_ruined_where(monkeypatch, model, (slice(None), slice(2, None)))()
    same(losses(model, sample), expected)
    assert losses(model, replace(sample, valid_steps=torch.ones(CONFIG.chunk, dtype=torch.bool))).action.isnan()


def test_an_action_dimension_that_the_robot_does_not_have(
    model: InternVLAA1, samples: Callable[[str, int], Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = samples("toy", MIDDLE)
    assert sample.valid_dims.tolist() == [True] * 3 + [False] * (CONFIG.action_dim - 3)
    expected = losses(model, sample)
    actions_ruined_where(monkeypatch, model, (..., slice(3, None)))()
    same(losses(model, sample), expected)
    assert losses(model, replace(sample, valid_dims=torch.ones(CONFIG.action_dim, dtype=torch.bool))).action.isnan()


def test_a_state_dimension_that_the_robot_does_not_have(
    model: InternVLAA1, samples: Callable[[str, int], Sample]
) -> None:
    sample = samples("toy", MIDDLE)
    assert sample.valid_state_dims.tolist() == [True] * 3 + [False] * (CONFIG.state_dim - 3)
    assert sample.state[~sample.valid_state_dims].eq(0).all()
    model.zero_grad()
    expected = losses(model, sample)
    expected.total.backward()
    weight = model.action.state_in.weight
    assert weight.grad is not None
    assert weight.grad[:, 3:].eq(0).all()
    assert weight.grad[:, :3].ne(0).any(dim=0).all()
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 3:] = 1e6
        same(losses(model, sample), expected)
        weight.copy_(kept)


def test_a_missing_camera(model: InternVLAA1, samples: Callable[[str, int], Sample]) -> None:
    sample = samples("toy", MIDDLE)
    assert sample.view_valid.tolist() == [True, False, True]
    expected = losses(model, sample)
    garbage = sample.frames.clone()
    garbage[1] = torch.rand_like(garbage[1])
    same(losses(model, replace(sample, frames=garbage)), expected)
    valid = torch.ones(3, 3, dtype=torch.bool)
    three = replace(sample, view_valid=valid[0], frame_valid=valid)
    for name in ("action", "foresight"):
        changed = (getattr(losses(model, replace(three, frames=seen)), name) for seen in (sample.frames, garbage))
        assert not torch.equal(*changed), name


def test_a_frame_past_the_end_of_the_episode(model: InternVLAA1, samples: Callable[[str, int], Sample]) -> None:
    middle, last = samples("toy", MIDDLE), samples("toy", LAST)
    assert last.frame_valid.tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    assert losses(model, last).foresight == 0
    expected = losses(model, middle, last)
    garbage = last.frames.clone()
    garbage[:, 2] = torch.nan
    same(losses(model, middle, replace(last, frames=garbage)), expected)
    real = replace(last, frame_valid=last.view_valid[:, None].expand(-1, 3))
    assert losses(model, real).foresight > 0
    other = last.frames.clone()
    other[:, 2] = 1 - other[:, 2]
    assert losses(model, replace(real, frames=other)).foresight != losses(model, real).foresight


def test_a_frame_before_the_beginning_of_the_episode(model: InternVLAA1, samples: Callable[[str, int], Sample]) -> None:
    first = samples("toy", FIRST)
    assert first.frame_valid.tolist() == [[False, True, True], [False] * 3, [False, True, True]]
    assert torch.equal(first.frames[:, 0], first.frames[:, 1])  # what it will see when it acts, too
    expected = losses(model, first)
    assert expected.foresight == 0
    assert expected.action > 0
    garbage = first.frames.clone()
    garbage[:, 2] = torch.nan
    same(losses(model, replace(first, frames=garbage)), expected)
    assert losses(model, first, repeated_history=True).foresight > 0  # as the released code learns


def test_missing_actions(
    model: InternVLAA1, samples: Callable[[str, int], Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    acting, watching = samples("toy", MIDDLE), samples("watcher", MIDDLE)
    assert (acting.valid_sample.item(), watching.valid_sample.item()) == (True, False)
    model.zero_grad()
    alone = losses(model, watching)
    alone.action.backward()
    assert alone.action == 0
    assert all(value.grad is None or value.grad.eq(0).all() for value in model.parameters())
    expected = losses(model, acting, watching)
    actions_ruined_where(monkeypatch, model, (1,))()
    ruined = replace(watching, actions=torch.full_like(watching.actions, torch.nan))
    same(losses(model, acting, ruined), expected)
    flags = {name: torch.ones_like(getattr(acting, name)) for name in ("valid_steps", "valid_dims")}
    same(losses(model, acting, replace(ruined, **flags)), expected)  # its own flag alone is enough
    assert losses(model, acting, replace(watching, **flags, valid_sample=acting.valid_sample)).action.isnan()
