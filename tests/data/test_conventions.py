"""Resizing, normalisation and units as openpi and LeRobot have them, beside recorded numbers and independent code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from resampling import ROUNDING, bilinear_weights
from safetensors.torch import load_file
from torch import Tensor

from moteur.data import (
    FieldStatistics,
    Robot,
    RobotDataset,
    RobotStatistics,
    RobotTransform,
    Source,
    Window,
    as_unit_floats,
    compute_statistics,
    resize_with_pad,
)
from moteur.data.statistics import Normalizer

LIBRARIES = ("openpi", "lerobot")
MODES = {"z_score": "mean_std", "quantile": "quantiles"}
IMAGES = ["image0.48x64", "image1.90x50", "image2.28x28", "image3.31x97", "image4.20x24"]
SIDE = 28


@pytest.fixture(scope="module")
def case(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "pi_processing/cases.safetensors")


# Resizing


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_are_resized_as_recorded(case: dict[str, Tensor], name: str) -> None:
    frames = case[f"{name}.raw"].permute(0, 3, 1, 2)
    theirs = (as_unit_floats(resize_with_pad(frames, SIDE, convention="openpi")) * 2 - 1 - case[f"{name}.openpi"]) / 2
    assert theirs.abs().max() * 255 <= 1 + 1e-4  # one byte, where the two round differently
    assert theirs.abs().mean() * 255 < 0.04
    floats = resize_with_pad(as_unit_floats(frames), SIDE, convention="lerobot") * 2 - 1
    torch.testing.assert_close(floats, case[f"{name}.lerobot"], rtol=0, atol=1e-6)


def fitted(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Rows, columns, and the first of each, of the picture in its square."""
    longest = max(width / size, height / size)
    rows, columns = int(height / longest), int(width / longest)
    return rows, columns, (size - rows) // 2, (size - columns) // 2


@given(st.integers(12, 90), st.integers(12, 90), st.integers(8, 60), st.integers(0, 99))
@settings(max_examples=25)
def test_bytes_are_resized_as_pillow_resizes_them(height: int, width: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns, top, left = fitted(height, width, size)
    expected = np.zeros((size, size, 3), dtype=np.uint8)
    small = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR)
    expected[top : top + rows, left : left + columns] = np.asarray(small)
    found = resize_with_pad(torch.from_numpy(pixels).permute(2, 0, 1), size, convention="openpi")
    assert found.dtype == torch.uint8
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1


@given(st.integers(12, 90), st.integers(12, 90), st.integers(8, 60), st.integers(0, 99))
@settings(max_examples=25)
def test_lerobot_looks_at_four_neighbours_and_rounds_sides_down(height: int, width: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((3, height, width), dtype=np.float32)
    rows, columns, top, left = fitted(height, width, size)
    expected = np.zeros((3, size, size))
    small = bilinear_weights(height, rows) @ pixels.astype(np.float64) @ bilinear_weights(width, columns).T
    expected[:, top : top + rows, left : left + columns] = small
    found = resize_with_pad(torch.from_numpy(pixels), size, convention="lerobot")
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("convention", ["internvla_a1", *LIBRARIES])
def test_bytes_stay_bytes_and_floats_stay_floats(convention: str, device: torch.device) -> None:
    frames = torch.randint(0, 256, (2, 4, 3, 31, 50), dtype=torch.uint8).to(device)
    whole = resize_with_pad(frames, 20, convention=convention)
    floats = resize_with_pad(frames.float() / 255, 20, convention=convention)
    assert (whole.dtype, floats.dtype, floats.shape) == (torch.uint8, torch.float32, (2, 4, 3, 20, 20))
    assert (whole.device, floats.device) == (frames.device, frames.device)
    assert torch.equal(whole, (floats * 255).round().to(torch.uint8))
    if convention == "openpi":
        assert torch.equal(floats, whole.float() / 255)
    assert resize_with_pad(frames[..., :31], 31, convention=convention) is not None
    square = frames[..., :31].contiguous()
    assert resize_with_pad(square, 31, convention=convention) is square


# Normalisation


@pytest.fixture(scope="module")
def field(case: dict[str, Tensor]) -> FieldStatistics:
    mean, std, q01, q99 = (tuple(case[f"stats.{name}"].tolist()) for name in ("mean", "std", "q01", "q99"))
    return FieldStatistics(0, mean=mean, std=std, min=q01, max=q99, q01=q01, q99=q99)


@pytest.fixture(scope="module")
def arm() -> Robot:
    parts = (Source("state", 7),), (Source("action", 7),)
    return Robot("arm", *parts, cameras=("front",), relative=(6, -1))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", list(MODES))
def test_states_and_actions_are_normalised_as_recorded(
    case: dict[str, Tensor], field: FieldStatistics, arm: Robot, library: str, kind: str
) -> None:
    transform = RobotTransform(arm, RobotStatistics("arm", 5, field, field), mode=MODES[kind], convention=library)
    state = transform.state(case["state"])[:, :7].double()
    torch.testing.assert_close(state, case[f"{library}.state.{kind}"], rtol=1e-7, atol=1e-7)  # of float32
    normalizer = Normalizer(field, mode=MODES[kind], convention=library)
    assert torch.equal(normalizer(case["state"]), case[f"{library}.state.{kind}"])
    back = case[f"{library}.actions.from_{kind}"]
    torch.testing.assert_close(normalizer.inverse(case["actions"]), back, rtol=1e-14, atol=1e-14)
    absolute = replace(arm, relative=())
    plain = RobotTransform(absolute, transform.statistics, mode=MODES[kind], convention=library)
    commands = plain.commands(case["actions"], case["state"])
    torch.testing.assert_close(commands, back, rtol=1e-14, atol=1e-14)
    anchored = back + torch.where(case["actions.delta_mask"], case["state"], 0)[:, None]
    torch.testing.assert_close(transform.commands(case["actions"], case["state"]), anchored, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", list(MODES))
def test_a_chunk_becomes_relative_and_is_then_normalised_as_recorded(
    case: dict[str, Tensor], field: FieldStatistics, arm: Robot, kind: str
) -> None:
    window = Window(offsets=(0,), chunk=5)
    statistics = RobotStatistics("arm", 5, field, field)
    transform = RobotTransform(arm, statistics, window=window, mode=MODES[kind], convention="openpi", dims=9, size=8)
    plain = RobotTransform(arm, statistics, window=window, mode="none", convention="openpi", dims=9, size=8)
    for place, state in enumerate(case["state"]):
        item = {
            "state": state,
            "action": case["actions"][place],
            "action_is_pad": torch.zeros(5, dtype=torch.bool),
            "front": torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            "front_is_pad": torch.zeros(1, dtype=torch.bool),
            "task": "",
        }
        deltas, found = plain(item).actions, transform(item).actions
        torch.testing.assert_close(deltas[:, :7], case["actions.delta"][place].float(), rtol=1e-6, atol=0)
        expected = case[f"openpi.actions.{kind}"][place].float()
        torch.testing.assert_close(found[:, :7], expected, rtol=1e-6, atol=1e-6)
        assert not found[:, 7:].any()


def test_the_lower_quantile_becomes_exactly_minus_one(field: FieldStatistics) -> None:
    """The prompt of π0.5 writes another number for what lies below."""
    for library in LIBRARIES:
        normalizer = Normalizer(field, mode="quantiles", convention=library)
        assert torch.equal(normalizer(torch.tensor(field.q01, dtype=torch.float64)), -torch.ones(7).double())


def test_the_range_of_lerobot_is_that_of_minimum_and_maximum() -> None:
    field = FieldStatistics(3, mean=(0.0, 0.0), std=(0.0, 0.0), min=(-1.0, 2.0), max=(3.0, 2.0))
    normalizer = Normalizer(field, mode="min_max", convention="lerobot")
    values = torch.tensor([[0.0, 2.0], [3.0, 2.0 + 1e-8]], dtype=torch.float64)
    expected = torch.tensor([[-0.5, -1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(normalizer(values), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(normalizer.inverse(normalizer(values)), values, rtol=1e-15, atol=1e-15)


@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_conventions_and_modes_are_named(field: FieldStatistics) -> None:
    with pytest.raises(
        ValueError, match=r"convention: expected one of \('internvla_a1', 'openpi', 'lerobot'\), got 'x'"
    ):
        resize_with_pad(torch.zeros(3, 4, 4), 4, convention="x")
    with pytest.raises(ValueError, match="convention: expected one of"):
        Normalizer(field, convention="x")
    with pytest.raises(ValueError, match=r"mode: expected one of \('mean_std', 'quantiles', 'none'\), got 'min_max'"):
        Normalizer(field, mode="min_max", convention="openpi")
    with pytest.raises(ValueError, match="statistics: expected quantiles for the mode 'quantiles', got none"):
        Normalizer(replace(field, q01=None), mode="quantiles", convention="lerobot")


# ALOHA


def as_pi_knows_it(state: np.ndarray) -> np.ndarray:
    """One state, entry by entry."""
    found = []
    for place, value in enumerate(state):
        joint = place % 7
        if joint == 6:
            opening = value * (0.05800 - 0.01844) + 0.01844
            sine = (0.022**2 + opening**2 - 0.036**2) / (2 * 0.022 * opening)
            found.append((np.arcsin(min(max(sine, -1), 1)) - 0.5476) / (1.6296 - 0.5476))
        else:
            found.append(-value if joint in {1, 2} else value)
    return np.array(found)


def as_a_command(action: np.ndarray) -> np.ndarray:
    """One action of the model, entry by entry."""
    found = []
    for place, value in enumerate(action):
        joint = place % 7
        if joint == 6:
            found.append((value + 0.5476 + 0.6213) / (1.4910 + 0.6213))
        else:
            found.append(-value if joint in {1, 2} else value)
    return np.array(found)


@pytest.fixture(scope="module")
def aloha() -> Robot:
    return replace(Robot.known("aloha"), adapt_to_pi=True)


def unit(*entries: str) -> FieldStatistics:
    dims = len(entries)
    return FieldStatistics(9, *[(value,) * dims for value in (0.0, 1.0, -1.0, 1.0)], entries=entries)


def test_an_aloha_is_seen_in_the_units_of_pi_and_commanded_in_its_own(aloha: Robot) -> None:
    statistics = RobotStatistics("aloha", 50, unit(*aloha.state_entries), unit(*aloha.action_entries))
    transform = RobotTransform(aloha, statistics, mode="none", convention="openpi", dims=16)
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (5, 14))
    states[:, [6, 13]] = rng.uniform(-0.1, 1.2, (5, 2))
    found = transform.state(states)[:, :14]
    torch.testing.assert_close(found, torch.from_numpy(np.stack([*map(as_pi_knows_it, states)])).float())
    chunk = rng.normal(size=(5, 50, 14))
    mask = np.array(aloha.relative_mask)
    absolute = chunk + np.where(mask, np.stack([*map(as_pi_knows_it, states)]), 0)[:, None]
    expected = np.stack([[as_a_command(action) for action in rows] for rows in absolute])
    np.testing.assert_allclose(transform.commands(chunk, states).numpy(), expected, rtol=0, atol=1e-12)


def test_what_an_aloha_recorded_comes_back_from_its_normalised_chunk(golden: Path) -> None:
    root = golden / "lerobot_v30/dataset"
    robot = replace(Robot.from_info(root, relative=(6, -1, 6, -1)), adapt_to_pi=True)
    statistics = compute_statistics(root, robot, chunk=4, progress=False)
    transform = RobotTransform(
        robot, statistics, window=Window(offsets=(0,), chunk=4), mode="quantiles", convention="openpi", size=16
    )
    dataset = RobotDataset(root, transform)
    raw = [dataset.source[place] for place in range(len(dataset))]
    states = np.stack([as_pi_knows_it(item["observation.state"].double().numpy()) for item in raw])
    assert np.allclose(statistics.state.mean, states.mean(axis=0), rtol=0, atol=1e-12)
    assert np.allclose(statistics.state.q99, np.quantile(states, 0.99, axis=0), rtol=0, atol=1e-12)
    for place in (0, 7, 61):
        chunk = dataset[place].actions
        commands = transform.commands(chunk, raw[place]["observation.state"])
        # The chunk is float32: an error of 2^-24 of the largest number, times the range that it stands for.
        torch.testing.assert_close(commands, raw[place]["action"].double(), rtol=0, atol=1e-5)
    plain = compute_statistics(root, replace(robot, adapt_to_pi=False), chunk=4, progress=False)
    with pytest.raises(ValueError, match=r"expected those of 'observation.state\[0\] in units of π' in this place"):
        RobotTransform(robot, plain)


def test_only_an_aloha_can_be_adapted_and_schemas_without_it_do_not_name_it(aloha: Robot, arm: Robot) -> None:
    with pytest.raises(
        ValueError, match=r"adapt_to_pi: expected 14 state and action dimensions for True, got \(7, 7\)"
    ):
        replace(arm, adapt_to_pi=True)
    assert "adapt_to_pi" not in arm.to_dict()
    assert Robot.from_dict(json.loads(json.dumps(aloha.to_dict()))) == aloha
