"""Streaming: a frame is encoded once, and what is kept is what encoding again would give."""

from dataclasses import replace

import pytest
import torch
from toy_model import random_inputs, randomised, toy_config

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config
from moteur.recipes.cosmos import Foresight
from moteur.runtime import InferenceSession


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each call of the encoder got."""
    counts: list[int] = []
    original = Foresight.encode

    def counted(self: Foresight, frames: torch.Tensor) -> torch.Tensor:
        counts.append(frames.shape[:-3].numel())
        return original(self, frames)

    monkeypatch.setattr(Foresight, "encode", counted)
    return counts


def episode(config: InternVLAA1Config, length: int) -> tuple[Inputs, torch.Tensor]:
    side, draw = config.frame_size, torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (1, length, config.views, 3, side, side), dtype=torch.uint8, generator=draw)
    return random_inputs(config, 1, 15), frames


def at(inputs: Inputs, frames: torch.Tensor, *times: int) -> Inputs:
    return replace(inputs, frames=torch.stack([frames[:, time] for time in times], dim=2))


def test_a_steady_state_call_encodes_the_current_frames_alone_and_gives_the_same_bits(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]
) -> None:
    inputs, frames = episode(toy, 24)
    streaming, stateless = InferenceSession(model, kernel="aten"), InferenceSession(model, kernel="aten")
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    for now in range(24):
        encoded.clear()
        found = streaming.act(at(inputs, frames, now), noise=noise)
        assert encoded == [3]
        expected = stateless.act(at(inputs, frames, max(0, now - toy.history), now), noise=noise)
        assert torch.equal(found, expected), now
    assert len(streaming.history.held) == toy.history + 1


def test_calls_between_which_steps_pass_read_the_frame_of_their_own_step(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]
) -> None:
    inputs, frames = episode(toy, 46)
    session, stateless = InferenceSession(model, kernel="aten"), InferenceSession(model, kernel="aten")
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    for now in range(0, 46, 15):  # each chunk is carried out for 15 steps, and nothing is shown in between
        encoded.clear()
        found = session.act(at(inputs, frames, now), noise=noise, step=now)
        assert encoded == [3]
        assert torch.equal(found, stateless.act(at(inputs, frames, max(0, now - 15), now), noise=noise))


@pytest.mark.parametrize("encode", [False, True])
def test_frames_shown_between_calls_are_encoded_when_they_are_needed_or_when_they_come(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int], encode: bool
) -> None:
    inputs, frames = episode(toy, 40)
    session, stateless = InferenceSession(model, kernel="aten"), InferenceSession(model, kernel="aten")
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    for now in range(40):
        encoded.clear()
        if now % 8 != 7:
            session.observe(frames[:, now], encode=encode)
            assert encoded == ([3] if encode else [])
            continue
        found = session.act(at(inputs, frames, now), noise=noise)
        assert encoded == (
            [3] if encode or now == 15 else [3, 3]
        )  # the first frame, which step 15 reads, was encoded at step 7
        expected = stateless.act(at(inputs, frames, max(0, now - toy.history), now), noise=noise)
        assert torch.equal(found, expected)


def test_a_new_episode_starts_from_nothing(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, frames = episode(toy, 3)
    session, noise = InferenceSession(model, kernel="aten"), torch.randn(1, toy.chunk, toy.action_dim)
    session.act(at(inputs, frames, 0), noise=noise)
    session.act(at(inputs, frames, 1), noise=noise)
    session.reset()
    assert session.history.held == []
    found = session.act(at(inputs, frames, 2), noise=noise)
    assert torch.equal(found, InferenceSession(model, kernel="aten").act(at(inputs, frames, 2, 2), noise=noise))


def test_a_camera_that_is_missing_may_come_back(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, frames = episode(toy, 2)
    session, noise = InferenceSession(model, kernel="aten"), torch.randn(1, toy.chunk, toy.action_dim)
    seen = torch.tensor([[True, False, True]])
    gone = replace(at(inputs, frames, 0), view_valid=seen)
    found = session.act(gone, noise=noise)
    plain = model.act(replace(at(inputs, frames, 0, 0), view_valid=seen), noise=noise)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    # Back in step 1: its present picture stands for the one that was never taken.
    found = session.act(at(inputs, frames, 1), noise=noise)
    both = at(inputs, frames, 0, 1)
    both.frames[:, 1, 0] = both.frames[:, 1, 1]
    torch.testing.assert_close(found, model.act(both, noise=noise), rtol=0, atol=1e-5)


def test_imagining_uses_the_history_too(toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]) -> None:
    inputs, frames = episode(toy, 20)
    session, stateless = InferenceSession(model, kernel="aten"), InferenceSession(model, kernel="aten")
    session.act(at(inputs, frames, 4), step=4)
    session.act(at(inputs, frames, 19), step=19)
    encoded.clear()
    found = session.imagine(at(inputs, frames, 19), step=19)
    assert encoded == []
    assert torch.equal(found.latents, stateless.imagine(at(inputs, frames, 4, 19)).latents)


def test_a_call_that_fails_leaves_the_episode_as_it_was(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, frames = episode(toy, 2)
    session = InferenceSession(model)
    session.act(at(inputs, frames, 0))
    with pytest.raises(ValueError, match="noise"):
        session.act(at(inputs, frames, 1), noise=torch.zeros(1, 1, 1).expand(1, toy.chunk, 1))
    with pytest.raises(ValueError, match="steps"):
        session.act(at(inputs, frames, 1), steps=0)
    assert session.history.held == [0]


def test_what_the_caller_writes_into_its_frames_later_changes_nothing(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    inputs, frames = episode(toy, 3)
    session, noise = InferenceSession(model, kernel="aten"), torch.randn(1, toy.chunk, toy.action_dim)
    buffer = frames[:, 0].clone()
    session.observe(buffer)
    buffer.zero_()
    found = session.act(at(inputs, frames, 2), noise=noise)
    assert torch.equal(found, InferenceSession(model, kernel="aten").act(at(inputs, frames, 0, 2), noise=noise))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_frame_that_does_not_fit_is_refused() -> None:
    config = toy_config()
    session = InferenceSession(randomised(config))
    right = torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8)
    session.observe(right)
    session.observe(right, step=4)
    wrong: list[tuple[torch.Tensor, int | None, str]] = [
        (right[:, :2], None, r"frames: expected shape \(3, 3, 32, 32\), got \(2, 3, 32, 32\)"),
        (right.int(), None, r"frames: expected uint8 or floats in \[0, 1\], got torch.int32"),
        (right + 1.5, None, r"frames: expected floats in \[0, 1\], got floats in \[1.5, 1.5\]"),
        (right * torch.nan, None, r"frames: expected floats in \[0, 1\], got floats in \[nan, nan\]"),
        (right.expand(2, -1, -1, -1, -1), None, "frames: expected a batch of 1 as in this episode so far, got 2"),
        (right, 3, r"step: expected 4 or later, got 3; call reset\(\) when an episode starts"),
        (right, -1, "step: expected 4 or later, got -1"),
    ]
    for frames, step, message in wrong:
        with pytest.raises(ValueError, match=message):
            session.observe(frames, step=step)
    assert session.history.held == [0, 4]


def test_other_pictures_under_a_step_that_was_seen_are_encoded_again(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]
) -> None:
    inputs, frames = episode(toy, 2)
    session, noise = InferenceSession(model, kernel="aten"), torch.randn(1, toy.chunk, toy.action_dim)
    session.act(at(inputs, frames, 0), noise=noise, step=0)
    encoded.clear()
    found = session.act(at(inputs, frames, 1), noise=noise, step=0)
    assert encoded == [3]
    assert torch.equal(found, InferenceSession(model, kernel="aten").act(at(inputs, frames, 1, 1), noise=noise))
    encoded.clear()
    assert torch.equal(session.act(at(inputs, frames, 1), noise=noise, step=0), found)
    assert encoded == []


def test_a_frame_that_is_too_old_is_not_taken_and_the_same_call_gives_the_same_actions(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    inputs, frames = episode(toy, 2)
    session, noise = InferenceSession(model, kernel="aten"), torch.randn(1, toy.chunk, toy.action_dim)
    session.act(at(inputs, frames, 0), noise=noise, step=0)
    first = session.act(at(inputs, frames, 1), noise=noise, step=100)
    assert torch.equal(session.act(at(inputs, frames, 1), noise=noise, step=100), first)
    assert torch.equal(first, InferenceSession(model, kernel="aten").act(at(inputs, frames, 1, 1), noise=noise))


def test_pictures_on_a_device_are_encoded_again_and_never_compared(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    """On the meta device, where a comparison would fail as it would wait on a GPU."""
    inputs, frames = episode(toy, 1)
    present = at(inputs, frames, 0)
    for device, again in (("cpu", True), ("meta", False)):
        session = InferenceSession(model, kernel="aten")
        there = replace(present, frames=present.frames.to(device))
        session._keep(session._arrived(there, 0), [torch.zeros(1, toy.views, *toy.latent_shape), None])
        assert ("latents" in session._arrived(there, 0).tensors) == again
