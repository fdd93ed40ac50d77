"""From a set on disk to the recipe's loss: what the loss counts is what the disk holds, and nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from moteur.recipes.collate import Collator, TrainingBatch
from torch import Tensor

from moteur.data import LeRobotSet, Robot, RobotDataset, RobotTransform, Window, compute_statistics
from moteur.data.images import resize_with_pad
from moteur.flowmatch import interpolate
from moteur.recipes import InternVLAA1, Processor, preset

CONFIG = preset("tiny")
WINDOW = Window(offsets=(-3, 0, 3), steps=CONFIG.chunk)
LENGTHS = (9, 2, 14)
# Start, middle and end of episodes, of a robot with two cameras and of a watcher with one and no actions.
PLACES = [("toy", 0), ("toy", 4), ("toy", 8), ("toy", 10), ("watcher", 4), ("watcher", 24), ("toy", 15)]


class Words:
    """A tokenizer that knows numbers of letters."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[len(word) + 10 for word in line.split()] for line in text]}


@dataclass
class Truth:
    """What the disk says about one sample, found without the preparation."""

    robot: Robot
    steps: int
    history: bool
    future: dict[int, Tensor]


@pytest.fixture(scope="module")
def robots(robot: Robot) -> dict[str, Robot]:
    watcher = replace(robot, name="watcher", action=(), relative=(), cameras=(None, "wrist", None))
    return {"toy": robot, "watcher": watcher}


@pytest.fixture(scope="module")
def batch(robots: dict[str, Robot], toy_root: Path) -> TrainingBatch:
    sets = {}
    for name, schema in robots.items():
        statistics = compute_statistics([toy_root], schema, steps=CONFIG.chunk, progress=False)
        transform = RobotTransform(
            schema, statistics, window=WINDOW, size=CONFIG.frame_size, dims=CONFIG.action_dim, images="float32"
        )
        sets[name] = RobotDataset(toy_root, transform)
    return Collator(Processor(CONFIG, Words()))([sets[name][position] for name, position in PLACES])


@pytest.fixture(scope="module")
def truths(robots: dict[str, Robot], toy_root: Path) -> list[Truth]:
    raw, places = list(LeRobotSet(toy_root)), [(step, length) for length in LENGTHS for step in range(length)]
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


def drawn() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(len(PLACES), CONFIG.chunk, CONFIG.action_dim, generator=draw), torch.rand(
        len(PLACES), generator=draw
    )


def test_the_loss_counts_exactly_what_is_on_the_disk(
    tiny: InternVLAA1, batch: TrainingBatch, truths: list[Truth], device: torch.device
) -> None:
    model, (noise, tau) = tiny.to(device), (part.to(device) for part in drawn())
    inputs, targets = batch.to(device)
    assert batch.robots == tuple(name for name, _ in PLACES)
    losses = model.loss(inputs, targets, noise=noise, tau=tau)
    with torch.no_grad():
        joint = model.joint(inputs, interpolate(noise, targets.actions, tau), tau)
        error = (model.action.velocity(joint.hidden["act"][:, 1:]) - (targets.actions - noise)) ** 2
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
    tiny: InternVLAA1, batch: TrainingBatch, truths: list[Truth]
) -> None:
    released = InternVLAA1(replace(CONFIG, action_reduction="released"))
    released.load_state_dict(tiny.state_dict())
    (noise, tau), (inputs, targets) = drawn(), batch.to("cpu")
    with torch.no_grad():
        joint = released.joint(inputs, interpolate(noise, targets.actions, tau), tau)
        error = (released.action.velocity(joint.hidden["act"][:, 1:]) - (targets.actions - noise)) ** 2
        found = released.loss(inputs, targets, noise=noise, tau=tau).action
    acting = [sample for sample, truth in enumerate(truths) if truth.robot.action]
    torch.testing.assert_close(found, error[acting].mean(), rtol=1e-5, atol=0)


def test_only_what_is_real_is_pulled_at(
    tiny: InternVLAA1, batch: TrainingBatch, truths: list[Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise, tau = drawn()
    seen: list[Tensor] = []
    velocity = tiny.cpu().action.velocity

    def watched(tokens: Tensor) -> Tensor:
        seen.append(velocity(tokens))
        seen[-1].retain_grad()
        return seen[-1]

    monkeypatch.setattr(tiny.action, "velocity", watched)
    tiny.loss(*batch.to("cpu"), noise=noise, tau=tau).action.backward()
    expected = torch.zeros_like(noise, dtype=torch.bool)
    for sample, truth in enumerate(truths):
        expected[sample, : truth.steps, : truth.robot.action_dim] = True
    assert seen[0].grad is not None
    assert torch.equal(seen[0].grad != 0, expected)


def test_what_is_not_on_the_disk_changes_nothing(tiny: InternVLAA1, batch: TrainingBatch, truths: list[Truth]) -> None:
    noise, tau = drawn()
    invented = torch.ones_like(batch.images, dtype=torch.bool)
    for sample, truth in enumerate(truths):
        present = [view for view, camera in enumerate(truth.robot.cameras) if camera]
        invented[sample, present, :2] = False  # a copied history frame is what the policy will see when it acts, too
        if truth.history:
            invented[sample, list(truth.future), 2] = False
    actions = batch.targets.actions.clone()
    actions[[sample for sample, truth in enumerate(truths) if not truth.robot.action]] = torch.nan
    garbage = replace(
        batch,
        images=torch.where(invented, torch.nan, batch.images),
        targets=replace(batch.targets, actions=actions),
    )
    losses = [tiny.cpu().loss(*kind.to("cpu"), noise=noise, tau=tau) for kind in (batch, garbage)]
    assert torch.isfinite(losses[0].total)
    for name in ("total", "action", "foresight"):
        assert torch.equal(getattr(losses[0], name), getattr(losses[1], name)), name


def test_bytes_arrive_as_the_floats_they_stand_for(batch: TrainingBatch, device: torch.device) -> None:
    as_bytes = replace(batch, images=(batch.images * 255).round().to(torch.uint8))
    inputs, targets = as_bytes.to(device)
    assert inputs.frames is not None
    assert targets.future_frames is not None
    expected = as_bytes.images.float() / 255
    torch.testing.assert_close(inputs.frames.cpu(), expected[:, :, :2], rtol=0, atol=1e-7)
    torch.testing.assert_close(targets.future_frames.cpu(), expected[:, :, 2], rtol=0, atol=1e-7)
    assert {inputs.state.device.type, inputs.pixel_values.device.type, targets.actions.device.type} == {device.type}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_batch_is_pinned_throughout(batch: TrainingBatch) -> None:
    pinned = batch.pin_memory()
    parts = [pinned.images, *vars(pinned.inputs).values(), *vars(pinned.targets).values()]
    assert all(part.is_pinned() for part in parts if isinstance(part, Tensor))
    assert torch.equal(pinned.images, batch.images)


def test_frames_of_another_size_are_refused(toy_root: Path, robot: Robot) -> None:
    statistics = compute_statistics([toy_root], robot, steps=CONFIG.chunk, progress=False)
    dataset = RobotDataset(toy_root, RobotTransform(robot, statistics, window=WINDOW, size=32, dims=8))
    with pytest.raises(ValueError, match=r"samples: expected frames of \(64, 64\), got \(32, 32\); .* size=64"):
        Collator(Processor(CONFIG, Words()))([dataset[0]])
