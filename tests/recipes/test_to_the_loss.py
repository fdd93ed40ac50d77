"""From a set on disk to the recipe's loss: what the loss counts is what the disk holds, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_recordings import TOY_LENGTHS

from moteur.data import (
    LeRobotSet,
    Robot,
    RobotDataset,
    RobotTransform,
    Sample,
    Window,
    compute_statistics,
    resize_with_pad,
)
from moteur.recipes import Collator, Inputs, InternVLAA1, Losses, Processor, Targets, TrainingBatch, preset
from moteur.recipes.internvla_a1 import Joint

CONFIG = preset("tiny")
WINDOW = Window(offsets=(-3, 0, 3), chunk=CONFIG.chunk)
FIRST, MIDDLE, LAST = 0, 4, 8  # of an episode of nine frames, with three of history and of future
# Start, middle and end of episodes, of a robot with two cameras and of a watcher with one and no actions.
PLACES = [("toy", 0), ("toy", 4), ("toy", 8), ("toy", 10), ("watcher", 4), ("watcher", 24), ("toy", 15)]


class Words:
    """A tokenizer that knows numbers of letters."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[len(word) + 10 for word in line.split()] for line in text]}


@dataclass
class Truth:
    """What the disk says about one sample, found without the transform."""

    robot: Robot
    steps: int
    history: bool
    future: dict[int, Tensor]


@pytest.fixture(scope="module")
def robots(robot: Robot) -> dict[str, Robot]:
    watcher = replace(robot, name="watcher", action=(), relative=(), cameras=(None, "wrist", None))
    return {"toy": robot, "watcher": watcher}


@pytest.fixture(scope="module")
def samples(robots: dict[str, Robot], toy_root: Path) -> Callable[[str, int], Sample]:
    """Samples of both robots from the same set, frames as floats."""
    sets: dict[str, RobotDataset] = {}
    for name, schema in robots.items():
        statistics = compute_statistics([toy_root], schema, chunk=CONFIG.chunk, progress=False)
        transform = RobotTransform(
            schema, statistics, window=WINDOW, size=CONFIG.frame_size, dims=CONFIG.action_dim, images="float32"
        )
        sets[name] = RobotDataset(toy_root, transform)
    return lambda name, position: sets[name][position]


@pytest.fixture(scope="module")
def batch(samples: Callable[[str, int], Sample]) -> TrainingBatch:
    return Collator(Processor(CONFIG, Words()))([samples(*place) for place in PLACES])


@pytest.fixture(scope="module")
def truths(robots: dict[str, Robot], toy_root: Path) -> list[Truth]:
    raw, places = list(LeRobotSet(toy_root)), [(step, length) for length in TOY_LENGTHS for step in range(length)]
    found = []
    for name, position in PLACES:
        step, length = places[position]
        future = {}
        if step + 3 < length:
            cameras = enumerate(robots[name].cameras)
            pictures = {view: raw[position + 3][camera] for view, camera in cameras if camera}
            future = {view: resize_with_pad(picture / 255, CONFIG.frame_size) for view, picture in pictures.items()}
        found.append(Truth(robots[name], min(CONFIG.chunk, length - step), step >= 3, future))
    return found


@pytest.fixture(scope="module")
def tiny() -> InternVLAA1:
    torch.manual_seed(0)
    return InternVLAA1(CONFIG)


@pytest.fixture
def model(tiny: InternVLAA1) -> InternVLAA1:
    """The same on the CPU: a test with a device moves it there."""
    return tiny.cpu()


def drawn(samples: int = len(PLACES)) -> dict[str, Tensor]:
    """Noise and flow times."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(samples, CONFIG.chunk, CONFIG.action_dim, generator=draw)
    return {"noise": noise, "time": torch.rand(samples, generator=draw)}


def same(found: Losses, expected: Losses) -> None:
    assert torch.isfinite(expected.total)
    for name in ("total", "action", "foresight"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def velocity_error(
    model: InternVLAA1, inputs: Inputs, targets: Targets, noise: Tensor, time: Tensor
) -> tuple[Tensor, Joint]:
    """Squared errors of the velocity, and the joint pass: time 1 is noise, time 0 the actions."""
    share = time[:, None, None]
    joint = model.joint(inputs, share * noise + (1 - share) * targets.actions, time)
    return (model.action.velocity(joint.hidden["act"][:, 1:]) - (noise - targets.actions)) ** 2, joint


def test_the_loss_counts_exactly_what_is_on_the_disk(
    tiny: InternVLAA1, batch: TrainingBatch, truths: list[Truth], device: torch.device
) -> None:
    model, draw = tiny.to(device), {name: part.to(device) for name, part in drawn().items()}
    inputs, targets = batch.to(device)
    assert batch.robots == tuple(name for name, _ in PLACES)
    losses = model(inputs, targets, **draw)
    with torch.no_grad():
        error, joint = velocity_error(model, inputs, targets, **draw)
        assert joint.grid is not None
        assert model.foresight is not None
        predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
        actions, latents = [], []
        for sample, truth in enumerate(truths):
            actions.append(error[sample, : truth.steps, : truth.robot.action_dim].flatten())
            for view, picture in truth.future.items() if truth.history else ():
                true = model.foresight.encode(picture.to(device).expand(1, 1, -1, -1, -1))[0, 0]
                latents.append((predicted[sample, view] - true) ** 2)
    assert len(latents) == 2 + 1 + 2  # two views of the toy's fifth frame, one of the watcher's, two of its third start
    torch.testing.assert_close(losses.action, torch.cat(actions).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.foresight, torch.stack(latents).mean(), rtol=1e-5, atol=0)


def test_the_released_reduction_leaves_out_samples_without_actions(
    model: InternVLAA1, batch: TrainingBatch, truths: list[Truth]
) -> None:
    released = InternVLAA1(replace(CONFIG, action_reduction="released"))
    released.load_state_dict(model.state_dict())
    with torch.no_grad():
        error, _ = velocity_error(released, batch.inputs, batch.targets, **drawn())
        found = released(batch.inputs, batch.targets, **drawn()).action
    acting = [sample for sample, truth in enumerate(truths) if truth.robot.action]
    torch.testing.assert_close(found, error[acting].mean(), rtol=1e-5, atol=0)


def test_only_what_is_real_is_pulled_at(
    model: InternVLAA1, batch: TrainingBatch, truths: list[Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    velocity = model.action.velocity

    def watched(tokens: Tensor) -> Tensor:
        seen.append(velocity(tokens))
        seen[-1].retain_grad()
        return seen[-1]

    monkeypatch.setattr(model.action, "velocity", watched)
    model(batch.inputs, batch.targets, **drawn()).action.backward()
    expected = torch.zeros_like(batch.targets.actions, dtype=torch.bool)
    for sample, truth in enumerate(truths):
        expected[sample, : truth.steps, : truth.robot.action_dim] = True
    assert seen[0].grad is not None
    assert torch.equal(seen[0].grad != 0, expected)


def test_what_is_not_on_the_disk_changes_nothing(model: InternVLAA1, batch: TrainingBatch, truths: list[Truth]) -> None:
    inputs, targets = batch.inputs, batch.targets
    assert targets.future_frames is not None
    past, future, actions = inputs.frames.clone(), targets.future_frames.clone(), targets.actions.clone()
    for sample, truth in enumerate(truths):
        absent = [view for view, camera in enumerate(truth.robot.cameras) if not camera]
        past[sample, absent] = torch.nan  # a copied history frame is what the policy will see when it acts, too
        known = truth.future if truth.history else {}
        future[sample, [view for view in range(len(truth.robot.cameras)) if view not in known]] = torch.nan
        if not truth.robot.action:
            actions[sample] = torch.nan
    expected = model(inputs, targets, **drawn())
    garbage = replace(targets, actions=actions, future_frames=future)
    same(model(replace(inputs, frames=past), garbage, **drawn()), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_batch_is_pinned_throughout(batch: TrainingBatch) -> None:
    pinned = batch.pin_memory()
    parts = [*vars(pinned.inputs).values(), *vars(pinned.targets).values()]
    assert all(part.is_pinned() for part in parts if isinstance(part, Tensor))
    assert torch.equal(pinned.inputs.frames, batch.inputs.frames)


# Each pad flag on its own: what it marks is not learned from, and without it would be.


def losses(model: InternVLAA1, *batch: Sample, repeated_history: bool = False) -> Losses:
    together = Collator(Processor(CONFIG, Words()), repeated_history=repeated_history)(batch)
    return model(together.inputs, together.targets, **drawn(len(batch)))


def after(value: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: change(value(*arguments))


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
