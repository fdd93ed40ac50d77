"""The demo's training: samples are what they say, the tokenizer keeps its images, an interruption changes nothing."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import cosmos
import train as training
from cosmos import encode_all, train_tokenizer
from demonstrations import Demonstrations
from robot import SIZE, Door, Policy, Scales, config
from train import Plan, train_policy

from moteur.recipes import InternVLAA1

EVERY, LENGTHS = 3, (25, 17)  # steps between pictures, and steps of two episodes


def demonstrations(seed: int = 0) -> Demonstrations:
    """Two made-up episodes whose commands count their steps and whose latents name their pictures."""
    generator = torch.Generator().manual_seed(seed)
    starts, frames = torch.tensor([0, LENGTHS[0]]), [len(range(0, length, EVERY)) for length in LENGTHS]
    offsets = torch.tensor([0, frames[0]])
    episode = torch.repeat_interleave(torch.arange(2), torch.tensor(frames))
    count = sum(frames)
    made = Demonstrations(
        frames=torch.randint(0, 256, (count, 3, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        first=offsets[episode],
        last=(offsets + torch.tensor(frames) - 1)[episode],
        step=starts[episode] + EVERY * (torch.arange(count) - offsets[episode]),
        end=(starts + torch.tensor(LENGTHS) - 1)[episode],
        instruction=torch.randint(0, 9, (count,), generator=generator),
        state=torch.randn(sum(LENGTHS), 4, generator=generator),
        action=torch.arange(sum(LENGTHS)).float()[:, None].expand(-1, 4).contiguous(),
        every=EVERY,
    )
    made.latents = torch.arange(count).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 16, 8, 8).contiguous()
    return made


def policy() -> Policy:
    torch.manual_seed(0)
    unit = Scales(torch.zeros(4), torch.ones(4) - 1e-6, torch.zeros(4), torch.ones(4) - 1e-6)
    return Policy(InternVLAA1(config(), decoder=True), Door(config()), unit)


def test_a_sample_holds_the_past_the_present_and_the_future_of_its_own_episode() -> None:
    data, own = demonstrations(), policy()
    index = torch.tensor([0, 7, 8, 9, 14])  # first episode: pictures 0 to 8; second: 9 to 14
    inputs, targets = data.samples(index, own)
    assert inputs.latents is not None
    assert targets.future_latents is not None
    assert targets.valid_future is not None
    assert targets.valid_steps is not None
    assert inputs.latents[:, 0, :, 0, 0, 0].tolist() == [[0, 0], [2, 7], [3, 8], [9, 9], [9, 14]]  # t-15 and t
    assert targets.future_latents[:, 0, 0, 0, 0].tolist() == [5, 8, 8, 14, 14]
    assert targets.valid_future[:, 0].tolist() == [True, False, False, True, False]
    steps = data.step[index]
    assert steps.tolist() == [0, 21, 24, 25, 40]
    assert targets.valid_steps.sum(1).tolist() == [25, 4, 1, 17, 2]
    expected = torch.minimum(steps[:, None] + torch.arange(config().chunk), data.end[index][:, None])
    torch.testing.assert_close(targets.actions[..., 3], expected.float())
    relative = expected - data.state[steps][:, :1]
    torch.testing.assert_close(targets.actions[..., 0], relative)


def test_scales_are_those_of_the_real_steps() -> None:
    data = demonstrations()
    found = data.scales(config().chunk)
    chunk, valid = data.chunks(torch.arange(len(data)), config().chunk)
    relative = (chunk - data.state[data.step][:, None])[valid]
    torch.testing.assert_close(found.action_mean[:3], relative.mean(0)[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.action_std[3], chunk[valid][:, 3].std(correction=0), rtol=1e-5, atol=1e-5)


def test_standardising_the_latents_changes_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    standardise, before = cosmos._standardise, []

    def noted(model: InternVLAA1, frames: torch.Tensor) -> None:
        before.append(copies(model, frames[:4]))
        standardise(model, frames)
        before.append(copies(model, frames[:4]))

    monkeypatch.setattr(cosmos, "_standardise", noted)
    data, own = demonstrations(), policy()
    train_tokenizer(own.model, data, steps=2, batch=2, progress=False)
    torch.testing.assert_close(before[1], before[0], rtol=0, atol=2e-5)  # float32 through a decoder in [0, 1]
    latents = encode_all(own.model, data, progress=False).float()
    torch.testing.assert_close(latents.mean((0, 1, 3, 4)), torch.zeros(16), rtol=0, atol=0.15)  # drawn with repeats
    torch.testing.assert_close(latents.std((0, 1, 3, 4)), torch.ones(16), rtol=0, atol=0.15)
    assert not any(parameter.requires_grad for parameter in own.model.foresight.encoder.parameters())


def copies(model: InternVLAA1, frames: torch.Tensor) -> torch.Tensor:
    assert model.foresight is not None
    return model.foresight.decode(model.foresight.encode(frames.float() / 255))


def test_training_the_decoder_only_leaves_the_latents_alone() -> None:
    data, own = demonstrations(), policy()
    latents = encode_all(own.model, data, progress=False)
    losses = train_tokenizer(own.model, data, steps=2, batch=2, decoder_only=True, progress=False)
    assert len(losses) == 2
    torch.testing.assert_close(encode_all(own.model, data, progress=False), latents, rtol=0, atol=0)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = demonstrations(), Plan(steps=4, batch=2, warmup=1)
    whole = policy()
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


def test_recordings_at_two_intervals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(config())
    made = {name: torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8).numpy() for name in ("overhead", "side", "wrist")}
    made |= {name: torch.zeros(4, 4).numpy() for name in ("state", "action")} | {"instruction": door.texts[0]}
    monkeypatch.setattr("demonstrations.load", lambda path: made | {"every": int(path.stem)})
    with pytest.raises(ValueError, match=r"expected recordings of one interval between pictures, got \[2, 3\]"):
        Demonstrations.read([Path("2.npz"), Path("3.npz")], door, progress=False)
