"""Which frame of an episode a call reads as its earlier one, and which frames are kept for it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moteur.runtime.history import Frame, FrameHistory


def frame(number: int, batch: int = 1) -> Frame:
    return Frame(torch.full((batch, 2, 3, 1, 1), number % 256, dtype=torch.uint8), ((True, True),) * batch)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True), st.integers(1, 20))
def test_the_earlier_frame_is_the_nearest_of_all_that_were_ever_seen(steps: list[int], reach: int) -> None:
    history, seen = FrameHistory(reach), []
    for step in sorted(steps):
        nearest = min([*seen, step], key=lambda held: (abs(held - (step - reach)), held))
        found = history.earlier(step)
        assert (step if found is None else found[0]) == nearest
        if found is not None:
            assert found[1].pictures.max() == nearest
        history.keep(step, frame(step))
        again = history.earlier(step)
        assert (again is None) == (found is None)
        assert again is None or found is None or again[0] == found[0]
        seen.append(step)
        assert len(history.held) <= reach + 1


def test_latents_stay_with_their_frame_and_are_forgotten_with_it() -> None:
    history = FrameHistory(2)
    for step in range(5):
        history.keep(step, frame(step))
        history.keep_latents(step, torch.full((1, 2, 1, 1, 1), float(step)))
    assert history.held == [2, 3, 4]
    held = history.recall(3, frame(3))
    assert held.latents is not None
    assert held.latents.max() == 3
    assert history.recall(3, frame(4)).latents is None  # other pictures
    history.keep_latents(0, torch.zeros(1, 2, 1, 1, 1))  # too late: that frame is gone
    assert history.recall(0, frame(0)).latents is None
    history.clear()
    assert history.held == []


def test_pictures_on_a_device_are_not_compared() -> None:
    """On the meta device, where a comparison would fail as it would wait on a GPU."""
    history, seen = FrameHistory(2), frame(1)
    there = Frame(seen.pictures.to("meta"), seen.views)
    for held, again in ((there, there), (seen, there), (there, seen)):
        history.keep(0, held)
        assert history.recall(0, again) is again
    history.keep(0, seen)
    assert history.recall(0, frame(1)) is seen
    white = Frame(seen.pictures.float(), seen.views)  # 1 is white as a float and almost black as a byte
    assert history.recall(0, white) is white


def test_steps_run_forward_and_batches_stay_as_they_are() -> None:
    history = FrameHistory(15)
    assert history.next_step(None, frame(0)) == 0
    history.keep(4, frame(4))
    assert history.next_step(None, frame(5)) == 5
    assert history.next_step(4, frame(4)) == 4
    with pytest.raises(ValueError, match=r"step: expected 4 or later, got 3; call reset\(\) when an episode starts"):
        history.next_step(3, frame(3))
    with pytest.raises(ValueError, match="frames: expected a batch of 1 as in this episode so far, got 2"):
        history.next_step(5, frame(5, batch=2))
    assert history.held == [4]
