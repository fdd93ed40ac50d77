"""Streaming: a frame is encoded once, and what is kept is what encoding again would give."""

from dataclasses import replace

import pytest
import torch
from toy_inference import still
from toy_model import randomised, toy_config, without_views

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.runtime import InferenceSession


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each call of the encoder got."""
    counts: list[int] = []
    from moteur.runtime.parts import Parts  # noqa: PLC0415  patched here alone

    original = Parts.encode

    def counted(self: Parts, frames: torch.Tensor) -> torch.Tensor:
        counts.append(frames.shape[:-3].numel())
        return original(self, frames)

    monkeypatch.setattr(Parts, "encode", counted)
    return counts


def episode(config: InternVLAA1Config, length: int) -> tuple[Inputs, torch.Tensor]:
    size = config.frame_size
    frames = torch.rand(1, length, config.views, 3, size, size, generator=torch.Generator().manual_seed(2))
    return still(config, 1, 15), frames


def at(inputs: Inputs, frames: torch.Tensor, before: int, now: int) -> Inputs:
    return replace(inputs, frames=torch.stack([frames[:, before], frames[:, now]], dim=2))


def test_a_steady_state_call_encodes_the_current_frames_alone_and_gives_the_same_bits(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]
) -> None:
    inputs, frames = episode(toy, 24)
    streaming = InferenceSession(model, inputs.image_grid)
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    for now in range(24):
        before = max(0, now - toy.history)
        seen = at(inputs, frames, before, now)
        encoded.clear()
        found = streaming.act(seen, noise=noise, times=(before, now))
        assert encoded == [3]
        assert torch.equal(found, InferenceSession(model, inputs.image_grid).act(seen, noise=noise)), now


def test_frames_pushed_as_they_arrive_leave_nothing_to_encode(
    toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]
) -> None:
    inputs, frames = episode(toy, 40)
    session = InferenceSession(model, inputs.image_grid)
    noise = torch.randn(1, toy.chunk, toy.action_dim)
    for now in range(40):
        session.push(now, frames[:, now])
        if now % 8 == 7:
            before = max(0, now - toy.history)
            encoded.clear()
            found = session.act(replace(inputs, frames=None), noise=noise, times=(before, now))
            assert encoded == []
            again = InferenceSession(model, inputs.image_grid).act(at(inputs, frames, before, now), noise=noise)
            assert torch.equal(found, again)


def test_a_new_episode_starts_from_nothing(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, frames = episode(toy, 3)
    session, noise = InferenceSession(model, inputs.image_grid), torch.randn(1, toy.chunk, toy.action_dim)
    session.act(at(inputs, frames, 0, 1), noise=noise, times=(0, 1))
    session.reset()
    other = at(inputs, frames, 2, 0)
    assert torch.equal(
        session.act(other, noise=noise, times=(0, 1)),
        InferenceSession(model, inputs.image_grid).act(other, noise=noise),
    )
    session.reset()
    with pytest.raises(ValueError, match=r"got neither \(frame 0 is not in the history, \[\]\)"):
        session.act(replace(inputs, frames=None), times=(0, 1))


def test_a_camera_that_is_missing_may_come_back(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, frames = episode(toy, 3)
    session, noise = InferenceSession(model, inputs.image_grid), torch.randn(1, toy.chunk, toy.action_dim)
    both, seen = at(inputs, frames, 0, 1), torch.tensor([[True, False, True]])
    gone = without_views(toy, both, seen)
    found = session.act(gone, noise=noise, times=(0, 1))
    torch.testing.assert_close(found, model.act(gone, noise=noise), rtol=0, atol=1e-5)
    # Frame 1 was encoded without the middle view: with the camera back, it is encoded again.
    back = replace(both, frames=torch.stack([frames[:, 1], frames[:, 2]], dim=2))
    assert torch.equal(session.act(back, noise=noise, times=(1, 2)), session.act(back, noise=noise))
    session.reset()
    session.push(
        0, frames[:, 0].where(torch.tensor([True, False, True])[:, None, None, None], torch.nan), view_valid=seen
    )
    session.push(1, frames[:, 1])
    assert torch.equal(session.act(both, noise=noise, times=(0, 1)), session.act(both, noise=noise))


def test_imagining_uses_the_history_too(toy: InternVLAA1Config, model: InternVLAA1, encoded: list[int]) -> None:
    inputs, frames = episode(toy, 2)
    session = InferenceSession(model, inputs.image_grid)
    seen = at(inputs, frames, 0, 1)
    expected = session.imagine(seen).latents
    session.act(seen, times=(0, 1))
    encoded.clear()
    assert torch.equal(session.imagine(seen, times=(0, 1)).latents, expected)
    assert encoded == []


@pytest.mark.usefixtures("without_shape_checks")
def test_a_pushed_frame_must_fit() -> None:
    config = toy_config()
    model = randomised(config)
    session = InferenceSession(model, still(config, 1, 1).image_grid)
    with pytest.raises(ValueError, match=r"frames: expected shape \(3, 3\), got \(2, 3\)"):
        session.push(0, torch.zeros(1, 2, 3, 32, 32))
    session.push(0, torch.zeros(1, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="frame: number 0 is there already"):
        session.push(0, torch.zeros(1, 3, 3, 32, 32))
    session.push(4, torch.zeros(1, 3, 3, 32, 32))
    wrong: list[tuple[torch.Tensor, str]] = [
        (torch.zeros(1, 3, 3, 32, 32, dtype=torch.uint8), r"frames: expected floats in \[0, 1\], got torch.uint8"),
        (torch.full((1, 3, 3, 32, 32), 1.5), r"frames: expected floats in \[0, 1\], got floats in \[1.5, 1.5\]"),
        (torch.full((1, 3, 3, 32, 32), torch.nan), r"frames: expected floats in \[0, 1\], got floats in \[nan, nan\]"),
        (torch.zeros(2, 3, 3, 32, 32), "frames: expected a batch of 1 as in this episode so far, got 2"),
    ]
    for frames, message in wrong:
        with pytest.raises(ValueError, match=message):
            session.push(5, frames)
    with pytest.raises(ValueError, match="frame: expected 4 or later, got 3; reset when an episode starts"):
        session.push(3, torch.zeros(1, 3, 3, 32, 32))
    inputs = still(config, 1, 1)
    for times in ((2, 3), (5, 4), (-1, 4)):
        message = r"times: expected 0 <= before <= now, now not before frame 4, got .*; reset"
        with pytest.raises(ValueError, match=message):
            session.act(inputs, times=times)
    with pytest.raises(ValueError, match="frames: expected a batch of 1 as in this episode so far, got 2"):
        session.act(still(config, 2, 1), times=(0, 5))
