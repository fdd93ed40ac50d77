"""The history of latents: what went in comes out, for as many frames as were asked for."""

import pytest
import torch

from moteur.runtime.history import LatentHistory


def test_it_hands_back_the_tensor_that_was_added(device: torch.device) -> None:
    history, latents = LatentHistory(3), torch.randn(2, 3, device=device)
    history.add(7, latents)
    assert history.get(7) is latents
    assert 7 in history
    assert 6 not in history


def test_it_drops_the_frame_added_longest_ago() -> None:
    history = LatentHistory(16)
    for number in range(40):
        history.add(number, torch.full((1,), float(number)))
        assert history.frames == list(range(max(0, number - 15), number + 1))
    assert [history.get(number).item() for number in history.frames] == list(range(24, 40))


def test_cleared_it_takes_the_same_numbers_again() -> None:
    history = LatentHistory(2)
    history.add(0, torch.zeros(1))
    history.clear()
    assert history.frames == []
    history.add(0, torch.ones(1))
    assert history.get(0).item() == 1


def test_misuse_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="capacity: expected at least 1 frame, got 0"):
        LatentHistory(0)
    history = LatentHistory(2)
    history.add(3, torch.zeros(1))
    with pytest.raises(ValueError, match="frame: number 3 is there already; clear the history when an episode starts"):
        history.add(3, torch.zeros(1))
    with pytest.raises(KeyError, match=r"frame 5: not in the history, which holds \[3\]"):
        history.get(5)
