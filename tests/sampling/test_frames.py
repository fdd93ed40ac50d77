"""Usable frames: numbering them and refusing what makes no sense."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.sampling.frames import FrameIndex

gaps_and_lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=8)


def ranges_of(pairs: list[tuple[int, int]]) -> list[list[int]]:
    ranges, end = [], 0
    for gap, length in pairs:
        ranges.append([end + gap, end + gap + length])
        end += gap + length
    return ranges


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(min_size=1, max_size=3), gaps_and_lengths, min_size=1, max_size=5))
def test_the_nth_usable_frame_is_that_of_a_written_out_list(pairs: dict[str, list[tuple[int, int]]]) -> None:
    ranges = {name: ranges_of(value) for name, value in pairs.items()}
    index = FrameIndex({name: np.array(value) for name, value in ranges.items()})
    assert index.names == tuple(sorted(ranges))
    for place, name in enumerate(index.names):
        written_out = [frame for start, stop in ranges[name] for frame in range(start, stop)]
        assert index.counts[place] == len(written_out)
        found = index.locate(np.full(len(written_out), place), np.arange(len(written_out)))
        assert found.tolist() == written_out


def test_a_number_of_frames_is_one_range_from_zero() -> None:
    whole, ranged = FrameIndex({"a": 5}), FrameIndex({"a": [[0, 5]]})
    assert whole.fingerprint == ranged.fingerprint
    assert whole.locate(np.zeros(5, dtype=int), np.arange(5)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("nth", [4, 6, -1])
def test_a_frame_past_the_end_of_a_dataset_is_not_one_of_its_neighbour(nth: int) -> None:
    index = FrameIndex({"a": 3, "b": [[10, 14]], "c": 5})
    with pytest.raises(
        ValueError, match=rf"nth: expected numbers from 0 to below the counts of their datasets, got .*{nth}"
    ):
        index.locate(np.array([0, 1, 2]), np.array([2, nth, 4]))


def test_the_fingerprint_changes_with_a_name_or_a_range() -> None:
    prints = {
        FrameIndex(frames).fingerprint
        for frames in ({"a": 5}, {"b": 5}, {"a": 6}, {"a": [[1, 6]]}, {"a": [[0, 2], [3, 6]]}, {"a": 5, "b": 5})
    }
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({}, "frames: expected at least one dataset, got none"),
        ({"a": 0}, r"frames: expected ascending, non-empty, disjoint ranges for 'a', got \(0, 0\)"),
        ({"a": -3}, r"ranges for 'a', got \(0, -3\)"),
        ({"a": [[0, 3], [2, 5]]}, r"ranges for 'a', got \(2, 5\)"),
        ({"a": [[4, 6], [0, 2]]}, r"ranges for 'a', got \(0, 2\)"),
        ({"a": [[-1, 2]]}, r"ranges for 'a', got \(-1, 2\)"),
        ({"a": [1, 2, 3]}, r"ranges of shape \(episodes, 2\) for 'a', got int64 of shape \(3,\)"),
        ({"a": np.zeros((0, 2), dtype=int)}, r"ranges of shape \(episodes, 2\) for 'a', got int64 of shape \(0, 2\)"),
        ({"a": 2.5}, r"frames: expected .* integer ranges of shape \(episodes, 2\) for 'a', got float64 of shape \(\)"),
        ({"a": 2**32}, r"frames: expected fewer than 2\^32 frames in 'a', got 4294967296"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named(frames: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameIndex(frames)  # pyright: ignore[reportArgumentType]
