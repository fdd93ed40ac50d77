"""The demo's training: samples are what they say, the tokenizer keeps its images, an interruption changes nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import cosmos
import train as training
from collect import PICTURES, features
from cosmos import train_tokenizer
from demonstrations import Demonstrations
from env import INSTRUCTIONS
from robot import ROBOT, config, untrained
from train import Plan, train_policy

from moteur.data import FieldStatistics, LeRobotSet, LeRobotWriter, RobotStatistics
from moteur.recipes import InternVLAA1

LENGTHS = (25, 17)  # steps of two episodes
TASK = INSTRUCTIONS[0].format("red")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up episodes whose commands count their steps."""
    made = tmp_path_factory.mktemp("set")
    rng, count = np.random.default_rng(0), 0
    with LeRobotWriter(made, fps=30, features=features(64), robot_type="conveyor", codec="libx264") as writer:
        for length in LENGTHS:
            for _ in range(length):
                frame = {"observation.state": rng.standard_normal(4), "action": np.full(4, count), "seed": 0}
                frame |= {key: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for key in PICTURES.values()}
                writer.add(frame | {"executed": np.zeros(4)}, task=TASK)
                count += 1
            writer.save_episode()
    return made


def untrained_model() -> InternVLAA1:
    zeros, ones, least = (0.0,) * 4, (1.0 - 1e-6,) * 4, (-1.0,) * 4
    unit = FieldStatistics(0, zeros, ones, least, ones)
    return untrained(RobotStatistics(ROBOT.name, config().chunk, unit, unit))


def demonstrations(root: Path, model: InternVLAA1, folder: Path | None = None) -> Demonstrations:
    data = Demonstrations(root, model, episodes=range(2))
    if folder is not None:
        data.encode(model, folder, progress=False)
    return data


def test_a_sample_holds_the_past_the_present_and_the_future_of_its_own_episode(root: Path, tmp_path: Path) -> None:
    model = untrained_model()
    data = demonstrations(root, model, tmp_path)
    source = LeRobotSet(root)
    index = torch.tensor([0, 21, 24, 25, 40])  # first episode: 0 to 24; second: 25 to 41
    batch = data.batch(index)
    inputs, targets = batch.inputs, batch.targets

    def pictures(*frames: int) -> torch.Tensor:
        return torch.stack([torch.stack([source[frame][key] for key in PICTURES.values()]) for frame in frames])

    def latents(*frames: int) -> torch.Tensor:
        assert model.foresight is not None
        return model.foresight.encode(pictures(*frames).float() / 255)

    close = {"rtol": 2e-3, "atol": 1e-3}  # the cache keeps half precision
    assert inputs.latents is not None
    assert targets.future_latents is not None
    torch.testing.assert_close(inputs.latents[:, :, 0].float(), latents(0, 6, 9, 25, 25), **close)
    torch.testing.assert_close(inputs.latents[:, :, 1].float(), latents(0, 21, 24, 25, 40), **close)
    torch.testing.assert_close(targets.future_latents.float(), latents(15, 24, 24, 40, 41), **close)
    assert torch.equal(inputs.frames[:, :, 0], pictures(0, 21, 24, 25, 40))
    assert targets.valid_future is not None
    assert targets.valid_steps is not None
    assert targets.valid_future[:, 0].tolist() == [True, False, False, True, False]
    assert targets.valid_steps.sum(1).tolist() == [25, 4, 1, 17, 2]
    end = torch.tensor([24, 24, 24, 41, 41])
    expected = torch.minimum(index[:, None] + torch.arange(config().chunk), end[:, None]).float()
    torch.testing.assert_close(targets.actions[..., 3], expected)
    poses = data.poses(index)
    torch.testing.assert_close(poses, torch.stack([source[int(at)]["observation.state"] for at in index]))
    torch.testing.assert_close(targets.actions[..., 0], expected - poses[:, :1])
    now, future = data.pair(index)
    torch.testing.assert_close(now, pictures(0, 21, 24, 25, 40) / 255)
    torch.testing.assert_close(future, pictures(15, 24, 24, 40, 41) / 255)
    assert data.instructions(index) == [TASK] * 5
    assert data.moments(3).tolist() == [0, 3, 6, 9, 25]


def test_pictures_are_numbered_frame_by_frame_and_view_by_view(root: Path) -> None:
    found, source = demonstrations(root, untrained_model()).pictures(torch.tensor([0, 4, 125])), LeRobotSet(root)
    for picture, (frame, view) in zip(found, [(0, 0), (1, 1), (41, 2)], strict=True):
        assert torch.equal(picture, source[frame][list(PICTURES.values())[view]])


def test_standardising_the_latents_changes_no_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standardise, before = cosmos._standardise, []

    def noted(model: InternVLAA1, frames: torch.Tensor) -> None:
        before.append(copies(model, frames[:4]))
        standardise(model, frames)
        before.append(copies(model, frames[:4]))

    monkeypatch.setattr(cosmos, "_standardise", noted)
    model = untrained_model()
    data = demonstrations(root, model)
    train_tokenizer(model, data, steps=2, batch=2, progress=False)
    torch.testing.assert_close(before[1], before[0], rtol=0, atol=2e-5)  # float32 through a decoder in [0, 1]
    latents = latents_of(model, data)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=0.15)  # drawn with repeats
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), rtol=0, atol=0.15)
    assert not any(parameter.requires_grad for parameter in model.foresight.encoder.parameters())


def copies(model: InternVLAA1, frames: torch.Tensor) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.decode(model.foresight.encode(frames.float() / 255))


def latents_of(model: InternVLAA1, data: Demonstrations) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.encode(data.pictures(torch.arange(3 * len(data))).float() / 255)


def test_training_the_decoder_only_leaves_the_latents_alone(root: Path) -> None:
    model = untrained_model()
    data = demonstrations(root, model)
    latents = latents_of(model, data)
    losses = train_tokenizer(model, data, steps=2, batch=2, decoder_only=True, progress=False)
    assert len(losses) == 2
    torch.testing.assert_close(latents_of(model, data), latents, rtol=0, atol=0)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, plan = untrained_model(), Plan(steps=4, batch=2, warmup=1)
    data = demonstrations(root, whole, tmp_path / "latents")
    history = train_policy(whole, data, plan, progress=False)
    state, steps = tmp_path / "training.pt", []

    def interrupted(*arguments: object, **named: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    step = training.train_step
    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_policy(untrained_model(), data, plan, state=state, every=2, progress=False)
    monkeypatch.setattr(training, "train_step", step)
    resumed = untrained_model()
    continued = train_policy(resumed, data, plan, state=state, every=2, progress=False)
    assert continued.action == history.action
    assert continued.foresight == history.foresight
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert not list(tmp_path.glob("*.part"))
