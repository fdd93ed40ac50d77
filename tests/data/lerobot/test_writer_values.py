"""What a frame may hold: numbers arrive as they were given, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot.encode import checked_value

WHOLE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize(
    ("dtype", "value", "named"),
    [
        ("uint8", 300, "300"),
        ("uint8", -1, "-1"),
        ("int8", 128, "128"),
        ("int64", np.uint64(2**63), str(2**63)),
        ("uint64", -1, "-1"),
        ("bool", 2, "2"),
        ("bool", 0.5, "0.5"),
        ("float16", 70000, "70000"),
        ("float32", 1e300, "1e\\+300"),
        ("float32", -(10**39), "force: expected float32 of shape \\(1,\\), got object"),
    ],
)
def test_a_number_that_the_type_cannot_hold_is_refused(dtype: str, value: object, named: str) -> None:
    message = named if "force" in named else f"force: expected numbers that {dtype} can hold, got {named}$"
    with pytest.raises(ValueError, match=message):
        checked_value("force", value, Feature(dtype, (1,)))


def test_the_first_offending_entry_of_a_vector_is_named() -> None:
    with pytest.raises(ValueError, match=r"state: expected numbers that uint8 can hold, got 256$"):
        checked_value("state", [[1, 2], [256, -3]], Feature("uint8", (2, 2)))


@given(value=st.integers(-(2**63), 2**64 - 1), dtype=st.sampled_from(WHOLE))
@settings(max_examples=200)
def test_whole_numbers_are_stored_as_they_are_or_refused(value: int, dtype: str) -> None:
    limits = np.iinfo(dtype)
    if limits.min <= value <= limits.max:
        assert checked_value("force", value, Feature(dtype, (1,))).item() == value
    else:
        with pytest.raises(ValueError, match=f"force: expected numbers that {dtype} can hold, got {value}$"):
            checked_value("force", value, Feature(dtype, (1,)))


@given(value=st.floats(allow_nan=False, allow_infinity=False), dtype=st.sampled_from(FLOATS))
@settings(max_examples=200)
def test_fractions_are_rounded_to_the_type_and_never_overflow(value: float, dtype: str) -> None:
    try:
        stored = checked_value("force", value, Feature(dtype, (1,)))
    except ValueError:
        with np.errstate(over="ignore"):
            assert np.isinf(np.dtype(dtype).type(value))
    else:
        assert abs(float(stored) - value) <= abs(value) * np.finfo(dtype).eps / 2 + np.finfo(dtype).smallest_subnormal


def test_every_type_that_can_be_recorded_comes_back_equal_at_its_limits(tmp_path: Path) -> None:
    frames: dict[str, Any] = {"bool": [False, True]}
    frames |= {dtype: [np.iinfo(dtype).min, np.iinfo(dtype).max] for dtype in WHOLE}
    frames |= {dtype: [np.finfo(dtype).min, np.finfo(dtype).smallest_subnormal] for dtype in FLOATS[:2]}
    frames["float64"] = [-1e150, np.finfo("float64").smallest_subnormal]  # squares of larger ones have no deviation
    frames = {dtype: np.array(values, dtype=dtype) for dtype, values in frames.items()}
    features = {dtype: Feature(dtype, (2,)) for dtype in frames}
    features |= {f"one {dtype}": Feature(dtype, (1,)) for dtype in frames}
    with LeRobotWriter(tmp_path, fps=10, features=features) as writer:
        for row in range(2):
            writer.add(frames | {f"one {dtype}": values[row] for dtype, values in frames.items()}, "look")
        writer.save_episode()
    dataset = LeRobotSet(tmp_path)
    for dtype, expected in frames.items():
        assert np.array_equal(dataset[1][dtype], expected)
        assert np.array_equal([dataset[row][f"one {dtype}"].item() for row in range(2)], expected)
        assert dataset[0][dtype].numpy().dtype == dtype


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0], [2.0, 3.0]], r"force: expected float32 of shape \(2,\), got \[\[1.0\], \[2.0, 3.0\]\] \("),
        (torch.ones(2, requires_grad=True), r"force: expected float32 of shape \(2,\), got tensor"),
        (torch.ones(2, dtype=torch.bfloat16), r"force: expected float32 of shape \(2,\), got tensor"),
    ],
)
def test_what_is_no_array_is_named(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_value("force", value, Feature("float32", (2,)))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("note", "task", "message"),
    [
        ("fine", 3, "task: expected a UTF-8 string, got 3"),
        ("fine", "\ud800", r"task: expected a UTF-8 string, got '\\ud800'"),
        ("\ud800", "fine", r"note: expected a UTF-8 string, got"),
    ],
)
def test_a_text_that_no_table_holds_is_refused_at_once(tmp_path: Path, note: str, task: str, message: str) -> None:
    with LeRobotWriter(tmp_path, fps=10, features={"note": Feature("string", (1,))}) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add({"note": note}, task)
        writer.add({"note": "fine"}, "fine")
        writer.save_episode()
    assert len(LeRobotSet(tmp_path)) == 1
