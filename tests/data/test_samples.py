"""Samples: the released order, every pad flag, and the way back to commands."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_recordings import TOY_LENGTHS

from moteur.data import (
    FieldStatistics,
    LeRobotSet,
    Robot,
    RobotDataset,
    RobotStatistics,
    RobotTransform,
    Sample,
    Window,
    compute_statistics,
)

STEPS = 6
WINDOW = Window(offsets=(-3, 0, 3), chunk=STEPS)


@pytest.fixture
def dataset(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> RobotDataset:
    return RobotDataset(toy_root, RobotTransform(robot, statistics, window=WINDOW, size=16, dims=5, images="float32"))


def places() -> list[tuple[int, int, int]]:
    """Position, frame and episode length of every sample."""
    pairs = [(step, length) for length in TOY_LENGTHS for step in range(length)]
    return [(position, *pair) for position, pair in enumerate(pairs)]


def test_samples_equal_the_released_order_written_out(
    toy_root: Path, statistics: RobotStatistics, dataset: RobotDataset
) -> None:
    raw = list(LeRobotSet(toy_root))
    assert statistics.action is not None
    for position, step, length in places():
        sample, start = dataset[position], position - step
        state = torch.cat([raw[position]["joints"], raw[position]["gripper"][None]]).double()
        chunk = [raw[start + min(step + ahead, length - 1)] for ahead in range(STEPS)]
        actions = torch.stack(
            [torch.cat([item["joints_target"], item["gripper_target"][None]]) for item in chunk]
        ).double()
        actions[:, :2] -= state[:2]  # the arm moves relative to now, the gripper does not
        for found, values, field in (
            (sample.state, state, statistics.state),
            (sample.actions, actions, statistics.action),
        ):
            mean, std = (torch.tensor(part, dtype=torch.float64) for part in (field.mean, field.std))
            expected = (values - mean) / (std + 1e-6)
            assert torch.equal(found[..., :3], expected.float())
            assert torch.equal(found[..., 3:], torch.zeros_like(found[..., 3:]))
        inside = [step + offset for offset in WINDOW.offsets]
        for view, camera in ((0, "head"), (2, "wrist")):
            frames = torch.stack([raw[start + min(max(at, 0), length - 1)][camera] for at in inside]) / 255
            small = F.interpolate(frames, (12, 16), mode="bilinear", align_corners=False)
            assert torch.equal(sample.frames[view], F.pad(small, (0, 0, 2, 2)))
        assert torch.equal(sample.frames[1], torch.ones(3, 3, 16, 16))


def test_every_pad_flag_is_there(dataset: RobotDataset) -> None:
    for position, step, length in places():
        sample = dataset[position]
        inside = [0 <= step + offset < length for offset in WINDOW.offsets]
        assert sample.frame_valid.tolist() == [inside, [False] * 3, inside]
        assert sample.view_valid.tolist() == [True, False, True]
        assert sample.valid_steps.tolist() == [step + ahead < length for ahead in range(STEPS)]
        assert sample.valid_dims.tolist() == sample.valid_state_dims.tolist() == [True] * 3 + [False] * 2
        assert sample.valid_sample.item() is True
        assert (sample.instruction, sample.robot) == ("reach", "toy")


def test_a_predicted_chunk_comes_back_as_the_recorded_commands(toy_root: Path, dataset: RobotDataset) -> None:
    raw = list(LeRobotSet(toy_root, keys=["joints", "gripper", "joints_target", "gripper_target"]))
    for position, step, length in places():
        state = torch.cat([raw[position]["joints"], raw[position]["gripper"][None]])
        commands = dataset.transform.commands(dataset[position].actions, state)
        for ahead in range(min(STEPS, length - step)):
            item = raw[position + ahead]
            expected = torch.cat([item["joints_target"], item["gripper_target"][None]]).double()
            # The sample is float32: half a unit in its last place, times the spread, is what may be lost.
            torch.testing.assert_close(commands[ahead], expected, rtol=0, atol=4e-6)


def test_commands_of_a_batch_are_those_of_its_samples(dataset: RobotDataset, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    actions, states = torch.randn(4, STEPS, 5, generator=generator), torch.randn(4, 3, generator=generator)
    together = dataset.transform.commands(actions.to(device), states.to(device))
    alone = torch.stack([dataset.transform.commands(*pair) for pair in zip(actions, states, strict=True)])
    torch.testing.assert_close(together.cpu(), alone, rtol=1e-12, atol=1e-12)


def test_bytes_differ_from_floats_by_rounding_only(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, dataset: RobotDataset
) -> None:
    stored = RobotDataset(toy_root, RobotTransform(robot, statistics, window=WINDOW, size=16, dims=5))[8].frames
    assert stored.dtype == torch.uint8
    assert (stored.float() / 255 - dataset[8].frames).abs().max() <= 0.5 / 255 + 1e-6


def test_frames_of_the_right_size_are_untouched(golden: Path, statistics: RobotStatistics) -> None:
    root = golden / "lerobot_v21/dataset"
    robot = Robot("top", (), (), ("observation.images.top",))
    field = FieldStatistics(0, (), (), (), ())
    transform = RobotTransform(robot, RobotStatistics("top", 50, field, None), window=Window(offsets=(0,)), size=128)
    sample = RobotDataset(root, transform)[20]
    raw = LeRobotSet(root)[20]["observation.images.top"]
    assert torch.equal(sample.frames[0, 0, :, 16:112], raw)
    assert sample.frames[0, 0, :, :16].eq(0).all()
    assert statistics is not None


@pytest.mark.parametrize("present", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_any_camera_may_be_missing(
    toy_root: Path, robot: Robot, statistics: RobotStatistics, present: tuple[int, ...]
) -> None:
    cameras = tuple(("head", "wrist", "side")[view] if view in present else None for view in range(3))
    transform = RobotTransform(replace(robot, cameras=cameras), statistics, window=WINDOW, size=16)
    sample = RobotDataset(toy_root, transform)[4]
    assert sample.view_valid.tolist() == [view in present for view in range(3)]
    assert sample.frame_valid.tolist() == [[view in present] * 3 for view in range(3)]
    for view in set(range(3)) - set(present):
        assert sample.frames[view].eq(255).all()


def test_data_without_actions_make_samples_without_actions(toy_root: Path, robot: Robot) -> None:
    watcher = replace(robot, action=(), relative=())
    found = compute_statistics([toy_root], watcher, progress=False)
    transform = RobotTransform(watcher, found, window=WINDOW, size=16, dims=5)
    sample = RobotDataset(toy_root, transform)[0]
    assert sample.valid_sample.item() is False
    assert sample.actions.eq(0).all()
    assert not sample.valid_steps.any()
    assert not sample.valid_dims.any()
    with pytest.raises(ValueError, match="actions: expected a robot with actions, got 'toy', which has none"):
        transform.commands(sample.actions, torch.zeros(3))


def test_times_may_be_given_in_seconds(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> None:
    window = Window(seconds=(-0.3, 0.0, 0.3), chunk=STEPS)
    in_seconds = RobotDataset(toy_root, RobotTransform(robot, statistics, window=window, size=16))
    in_frames = RobotDataset(toy_root, RobotTransform(robot, statistics, window=WINDOW, size=16))
    assert torch.equal(in_seconds[5].frames, in_frames[5].frames)
    assert torch.equal(in_seconds[5].frame_valid, in_frames[5].frame_valid)


def test_a_column_may_be_state_and_action_at_once(toy_root: Path, robot: Robot) -> None:
    follower = replace(robot, action=robot.state)
    found = compute_statistics([toy_root], follower, chunk=STEPS, progress=False)
    transform = RobotTransform(follower, found, window=WINDOW, size=16, dims=5)
    sample, raw = RobotDataset(toy_root, transform)[4], list(LeRobotSet(toy_root, keys=["joints", "gripper"]))
    state = torch.cat([raw[4]["joints"], raw[4]["gripper"][None]])
    assert torch.equal(sample.state, transform.state(state))
    later = torch.cat([raw[7]["joints"], raw[7]["gripper"][None]]).double()
    torch.testing.assert_close(transform.commands(sample.actions, state)[3], later, rtol=0, atol=4e-6)


def test_samples_of_different_robots_stack(toy_root: Path, robot: Robot, statistics: RobotStatistics) -> None:
    watcher = replace(robot, name="watcher", action=(), relative=(), cameras=("wrist", None, None))
    watching = compute_statistics(toy_root, watcher, chunk=STEPS, progress=False)
    pairs = ((robot, statistics), (watcher, watching))
    samples = [RobotDataset(toy_root, RobotTransform(*pair, window=WINDOW, size=16, dims=5))[4] for pair in pairs]
    batch = Sample.stack(samples)
    assert (batch.robot, batch.instruction) == (["toy", "watcher"], ["reach", "reach"])
    assert batch.valid_sample.tolist() == [True, False]
    for name in ("frames", "view_valid", "frame_valid", "state", "actions", "valid_steps", "valid_dims"):
        assert torch.equal(getattr(batch, name), torch.stack([getattr(sample, name) for sample in samples])), name
    assert batch.latents is batch.future_latents is None
    latents = torch.randn(3, 2, 4, 2, 2)
    encoded = [replace(sample, latents=latents, future_latents=latents[:, 0]) for sample in samples]
    assert torch.equal(Sample.stack(encoded).latents, torch.stack([latents, latents]))
    with pytest.raises(ValueError, match="samples: expected latents of one shape, got"):
        Sample.stack([samples[0], encoded[1]])
    with pytest.raises(ValueError, match="samples: expected at least one, got none"):
        Sample.stack([])


def test_a_loaders_workers_stack_samples(dataset: RobotDataset) -> None:
    loader = torch.utils.data.DataLoader(
        dataset,  # pyright: ignore[reportArgumentType]
        batch_size=4,
        collate_fn=Sample.stack,
        num_workers=1,
        multiprocessing_context="fork",
    )
    batch = next(iter(loader))
    assert torch.equal(batch.frames, torch.stack([dataset[position].frames for position in range(4)]))
    assert batch.robot == ["toy"] * 4


def test_they_print_in_a_line(dataset: RobotDataset) -> None:
    assert repr(dataset[0]).startswith("Sample(frames=torch.float32 (3, 3, 3, 16, 16), view_valid=torch.bool (3,), ")
    assert "instruction='reach', robot='toy')" in repr(dataset[0])
    assert repr(dataset).endswith("set', robot 'toy', 25 samples of 3 episodes)")
    assert repr(dataset.transform) == (
        "RobotTransform('toy', 3 state and 3 action dimensions of 5, "
        "Window(offsets=(-3, 0, 3), seconds=None, chunk=6), frames 16 x 16 float32, mean_std)"
    )


def test_the_chunk_is_as_long_as_that_of_the_statistics(robot: Robot, statistics: RobotStatistics) -> None:
    assert RobotTransform(robot, statistics).window == Window(chunk=STEPS)


@pytest.mark.usefixtures("without_shape_checks")
def test_arrays_and_lists_act_as_tensors_do(dataset: RobotDataset) -> None:
    transform, generator = dataset.transform, torch.Generator().manual_seed(0)
    actions, states = torch.randn(4, STEPS, 5, generator=generator), torch.randn(4, 3, generator=generator)
    expected, state = transform.commands(actions, states), transform.state(states)
    assert expected.shape == (4, STEPS, 3)
    assert torch.equal(transform.commands(actions.numpy(), states.numpy()), expected)
    assert torch.equal(transform.commands(actions, states.numpy()[::-1][::-1]), expected)
    assert torch.equal(transform.state(states.numpy()), state)
    assert torch.equal(transform.state(states[0].tolist()), state[0])
    fixed = states.numpy().copy()
    fixed.setflags(write=False)
    assert torch.equal(transform.state(fixed), state)


@pytest.mark.parametrize(
    ("actions", "state", "message"),
    [
        ((STEPS, 5), (7,), r"state: expected the 3 dimensions of robot 'toy' last, got shape \(7,\)"),
        ((4, STEPS, 5), (4, 1, 2), r"state: expected the 3 dimensions of robot 'toy' last, got shape "),
        ((4, STEPS, 5), (2, 3), r"state: expected one, or one for each chunk of a batch \(4,\), got a batch \(2,\)"),
        ((STEPS, 5), (2, 3), r"state: expected one, or one for each chunk of a batch \(\), got a batch \(2,\)"),
        ((STEPS, 1), (3,), "actions: expected at least 3 dimensions, got 1"),
        ((STEPS, 5), (1,), "state: expected the 3 dimensions of robot 'toy' last, got shape"),
        ((STEPS, 5), (5,), "state: expected the 3 dimensions of robot 'toy' last, got shape"),
        ((STEPS, 2), (3,), "actions: expected at least 3 dimensions, got 2"),
    ],
)
@pytest.mark.parametrize("kind", [torch.zeros, np.zeros])
def test_numbers_of_another_width_are_refused(
    dataset: RobotDataset, kind: Callable[..., Any], actions: tuple[int, ...], state: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataset.transform.commands(kind(actions), kind(state))
    if message.startswith("state: expected the"):
        with pytest.raises(ValueError, match=message):
            dataset.transform.state(kind(state))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(dataset: RobotDataset, value: float) -> None:
    transform, actions, state = dataset.transform, np.zeros((2, STEPS, 5)), np.zeros((2, 3))
    actions[1, 3, 4] = value  # beyond the robot's dimensions: nobody reads it
    assert torch.isfinite(transform.commands(actions, state)).all()
    actions[1, 3, 1] = value
    expected = rf"actions: expected finite numbers, got {value} as dimension 1 \(joints_target\[1\] - joints\[1\]\)"
    with pytest.raises(ValueError, match=expected):
        transform.commands(actions, state)
    state[1, 2] = value
    message = rf"state: expected finite numbers, got {value} as dimension 2 \(gripper\[0\]\)"
    with pytest.raises(ValueError, match=message):
        transform.state(state)
    with pytest.raises(ValueError, match=message):
        transform.commands(np.zeros((2, STEPS, 5)), state)


def test_commands_and_samples_never_overflow(robot: Robot, statistics: RobotStatistics) -> None:
    """Finite numbers and finite statistics can still make one that is not."""
    assert statistics.action is not None
    wide = replace(statistics, action=replace(statistics.action, std=(1e300,) * 3))
    with pytest.raises(ValueError, match=r"commands: expected finite numbers, got inf as dimension 0 \(joints_target"):
        RobotTransform(robot, wide).commands(torch.full((STEPS, 3), 1e10), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"state: expected numbers that float32 can hold once normalised, got .*e\+299"
    ):
        RobotTransform(robot, statistics).state([1e300, 0.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window": Window()},
            "statistics: expected those of chunks of 50 steps, as in the window, got 6",
        ),
        (
            {"dims": 2},
            "dims: expected at least 3, as robot 'toy' has, got 2",
        ),
        (
            {"robot": "name"},
            r"statistics: expected those of this robot, .*: \('other', 3, 3\), got \('toy', 3, 3\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    robot: Robot, statistics: RobotStatistics, changes: dict, message: str
) -> None:
    arguments = {"robot": robot, "statistics": statistics, "window": WINDOW} | changes
    if changes.get("robot"):
        arguments["robot"] = replace(robot, name="other")
    with pytest.raises(ValueError, match=message):
        RobotTransform(**arguments)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "meanstd"}, r"mode: expected one of \('mean_std', 'min_max', 'quantiles', 'none'\), got 'meanstd'"),
        ({"images": "float"}, "images: expected 'uint8' or 'float32', got 'float'"),
    ],
)
def test_an_option_that_is_none_is_refused(
    robot: Robot, statistics: RobotStatistics, option: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RobotTransform(robot, statistics, window=WINDOW, **option)


def test_a_set_of_another_robot_is_refused_when_it_is_opened(
    golden: Path, robot: Robot, statistics: RobotStatistics
) -> None:
    with pytest.raises(
        ValueError, match=r"info.json does not fit robot 'toy': .*robot_type: expected one of ..toy.., got 'aloha'"
    ):
        RobotDataset(golden / "lerobot_v30/dataset", RobotTransform(robot, statistics, window=WINDOW))
