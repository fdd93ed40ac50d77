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
from robot import ROBOT, SIZE, Door, Policy, config
from train import Plan, train_policy

from moteur.data import FieldStatistics, LeRobotSet, LeRobotWriter, RobotStatistics
from moteur.recipes import InternVLAA1

LENGTHS = (25, 17)  # steps of two episodes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up episodes whose commands count their steps."""
    made = tmp_path_factory.mktemp("set")
    rng, count = np.random.default_rng(0), 0
    with LeRobotWriter(made, fps=30, features=features(SIZE), robot_type="conveyor", codec="libx264") as writer:
        for length in LENGTHS:
            for _ in range(length):
                frame = {"observation.state": rng.standard_normal(4), "action": np.full(4, count), "seed": 0}
                frame |= {key: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for key in PICTURES.values()}
                writer.add(frame | {"executed": np.zeros(4)}, task="take the red block")
                count += 1
            writer.save_episode()
    return made


def policy() -> Policy:
    torch.manual_seed(0)
    zeros, ones, least = (0.0,) * 4, (1.0 - 1e-6,) * 4, (-1.0,) * 4
    unit = FieldStatistics(0, zeros, ones, least, ones)
    statistics = RobotStatistics(ROBOT.name, config().chunk, unit, unit)
    door = Door(config())
    door.texts = ["take the red block", *door.texts[1:]]
    return Policy(InternVLAA1(config(), decoder=True), door, statistics)


def demonstrations(root: Path, own: Policy, folder: Path | None = None, *, future: bool = False) -> Demonstrations:
    data = Demonstrations(root, own, episodes=range(2), future=future)
    if folder is not None:
        data.encode(own, folder, progress=False)
    return data


def test_a_sample_holds_the_past_the_present_and_the_future_of_its_own_episode(root: Path, tmp_path: Path) -> None:
    own = policy()
    data = demonstrations(root, own, tmp_path, future=True)
    source = LeRobotSet(root)
    index = torch.tensor([0, 21, 24, 25, 40])  # first episode: 0 to 24; second: 25 to 41
    inputs, targets = data.samples(index)

    def latents(*frames: int) -> torch.Tensor:
        assert own.model.foresight is not None
        pictures = torch.stack([torch.stack([source[frame][key] for key in PICTURES.values()]) for frame in frames])
        return own.model.foresight.encode(pictures.float() / 255)

    close = {"rtol": 2e-3, "atol": 1e-3}  # the cache keeps half precision
    assert inputs.latents is not None
    torch.testing.assert_close(inputs.latents[:, :, 0], latents(0, 6, 9, 25, 25), **close)
    torch.testing.assert_close(inputs.latents[:, :, 1], latents(0, 21, 24, 25, 40), **close)
    torch.testing.assert_close(targets.future_latents, latents(15, 24, 24, 40, 41), **close)
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
    future = data.batch(index).frames[:, :, 1]
    assert torch.equal(future[0], torch.stack([source[15][key] for key in PICTURES.values()]))
    assert data.moments(3).tolist() == [0, 3, 6, 9, 25]


def test_pictures_are_numbered_frame_by_frame_and_view_by_view(root: Path) -> None:
    found, source = demonstrations(root, policy()).pictures(torch.tensor([0, 4, 125])), LeRobotSet(root)
    for picture, (frame, view) in zip(found, [(0, 0), (1, 1), (41, 2)], strict=True):
        assert torch.equal(picture, source[frame][list(PICTURES.values())[view]])


def test_standardising_the_latents_changes_no_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standardise, before = cosmos._standardise, []

    def noted(model: InternVLAA1, frames: torch.Tensor) -> None:
        before.append(copies(model, frames[:4]))
        standardise(model, frames)
        before.append(copies(model, frames[:4]))

    monkeypatch.setattr(cosmos, "_standardise", noted)
    own = policy()
    data = demonstrations(root, own)
    train_tokenizer(own.model, data, steps=2, batch=2, progress=False)
    torch.testing.assert_close(before[1], before[0], rtol=0, atol=2e-5)  # float32 through a decoder in [0, 1]
    latents = latents_of(own.model, data)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=0.15)  # drawn with repeats
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), rtol=0, atol=0.15)
    assert not any(parameter.requires_grad for parameter in own.model.foresight.encoder.parameters())


def copies(model: InternVLAA1, frames: torch.Tensor) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.decode(model.foresight.encode(frames.float() / 255))


def latents_of(model: InternVLAA1, data: Demonstrations) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.encode(data.pictures(torch.arange(3 * len(data))).float() / 255)


def test_training_the_decoder_only_leaves_the_latents_alone(root: Path) -> None:
    own = policy()
    data = demonstrations(root, own)
    latents = latents_of(own.model, data)
    losses = train_tokenizer(own.model, data, steps=2, batch=2, decoder_only=True, progress=False)
    assert len(losses) == 2
    torch.testing.assert_close(latents_of(own.model, data), latents, rtol=0, atol=0)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, plan = policy(), Plan(steps=4, batch=2, warmup=1)
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
        train_policy(policy(), data, plan, state=state, every=2, progress=False)
    monkeypatch.setattr(training, "train_step", step)
    resumed = policy()
    continued = train_policy(resumed, data, plan, state=state, every=2, progress=False)
    assert continued.action == history.action
    assert continued.foresight == history.foresight
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert not list(tmp_path.glob("*.part"))
