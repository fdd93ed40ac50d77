"""Windows: the times they take, and their plain values."""

import json
import re
from typing import Any

import pytest

from moteur.data import Window


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offsets": (-1.5, 0, 1)}, r"^offsets\[0\]: expected an integer, got -1.5"),
        ({"seconds": "abc"}, r"^seconds: expected a list, got 'abc'"),
        ({"chunk": 2.5}, r"^chunk: expected an integer, got 2.5"),
    ],
)
def test_a_window_of_wrong_types_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(**arguments)


@pytest.mark.parametrize(
    "window", [Window(), Window(offsets=(0,), chunk=3), Window(seconds=(-0.5, 0.0, 0.5)), Window((-3, 0, 3), chunk=6)]
)
def test_a_window_survives_json(window: Window) -> None:
    assert Window.from_dict(json.loads(json.dumps(window.to_dict()))) == window


def test_what_is_left_out_is_the_default_and_another_field_is_refused() -> None:
    assert Window.from_dict({}) == Window()
    with pytest.raises(ValueError, match="window: width: unknown field"):
        Window.from_dict({"width": 3})
    with pytest.raises(ValueError, match=r"window: offsets\[0\]: expected an integer, got 'a'"):
        Window.from_dict({"offsets": ["a", 0, 3]})
    with pytest.raises(ValueError, match=r"window: chunk: expected at least 1, got 0"):
        Window.from_dict({"chunk": 0})


@pytest.mark.parametrize(
    "times",
    [(), (15, 0, -15), (-15, -1, 15), (-15, 0), (0, 15), (0, 15, 30), (-30, -15, 0), (-15, 0, 0), (-15, 0, 15, 30)],
)
def test_times_that_are_not_history_present_and_future_are_refused(times: tuple[int, ...]) -> None:
    message = "expected a time before 0, 0 and a time after it, or (0,) alone, got"
    with pytest.raises(ValueError, match=re.escape(f"offsets: {message} {times}")):
        Window(offsets=times)
    seconds = tuple(time / 30 for time in times)
    with pytest.raises(ValueError, match=re.escape(f"seconds: {message} {seconds}")):
        Window(seconds=seconds)


def test_seconds_become_frames_only_where_they_are_whole_frames() -> None:
    window = Window(seconds=(-0.5, 0.0, 0.5))
    assert window.frame_offsets(fps=30) == (-15, 0, 15)
    assert window.frame_offsets(fps=10) == (-5, 0, 5)
    with pytest.raises(ValueError, match=r"seconds: expected multiples of the frame time 1/15 s, got -0.5"):
        window.frame_offsets(fps=15)
    assert Window(seconds=(0.0,)).frame_offsets(fps=7) == Window(offsets=(0,)).frame_offsets(fps=7) == (0,)


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk: expected at least 1, got 0"):
        Window(chunk=0)
