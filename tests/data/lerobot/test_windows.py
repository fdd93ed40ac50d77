"""Windows around a frame, and which frames a dataset holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_set import FPS, LENGTHS, SIDE, TOP, frame, read_number, task

from moteur.data import LeRobotSet

OFFSETS = st.lists(st.integers(-20, 20), min_size=1, max_size=6)
SHARED_SET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def oracle(position: int) -> tuple[int, int]:
    """Episode and frame by counting."""
    places = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    return places[position]


@given(position=st.integers(0, sum(LENGTHS) - 1), offsets=OFFSETS)
@SHARED_SET
def test_a_window_repeats_the_last_frame_within_the_episode_and_says_so(
    recorded: Path, position: int, offsets: list[int]
) -> None:
    item = LeRobotSet(recorded, offsets=dict.fromkeys((TOP, SIDE, "action", "gripper", "note"), offsets))[position]
    episode, step = oracle(position)
    inside = [min(max(step + offset, 0), LENGTHS[episode] - 1) for offset in offsets]
    assert [read_number(picture) for picture in item[TOP]] == [(episode, place) for place in inside]
    stored = [frame(episode, place) for place in inside]
    assert torch.equal(item["action"], torch.stack([value["action"] for value in stored]))
    assert item["gripper"].tolist() == [value["gripper"] for value in stored]
    assert item["note"] == [value["note"] for value in stored]
    assert np.array_equal(item[SIDE].permute(0, 2, 3, 1), np.stack([value[SIDE] for value in stored]))
    clamped = [place != step + offset for place, offset in zip(inside, offsets, strict=True)]
    for key in (TOP, SIDE, "action", "gripper", "note"):
        assert item[f"{key}_is_pad"].tolist() == clamped


def test_keys_without_offsets_have_no_time_axis_and_keep_their_type(recorded: Path) -> None:
    dataset = LeRobotSet(recorded)
    for position in range(len(dataset)):
        item, (episode, step) = dataset[position], oracle(position)
        stored = frame(episode, step)
        assert read_number(item[TOP]) == (episode, step)
        assert np.array_equal(item[SIDE].permute(1, 2, 0), stored[SIDE])
        assert np.array_equal(item["matrix"], stored["matrix"])
        assert item["matrix"].dtype == torch.float64
        assert np.array_equal(item["observation.state"], stored["observation.state"])
        assert item["success"].item() is stored["success"]
        assert item["gripper"].shape == ()
        assert (item["note"], item["task"]) == (stored["note"], task(episode))
        assert item["timestamp"] == torch.tensor(step / FPS, dtype=torch.float32)
        assert [int(item[key]) for key in ("index", "episode_index", "frame_index")] == [position, episode, step]


def test_chosen_episodes_come_in_the_order_they_were_given(recorded: Path) -> None:
    dataset = LeRobotSet(recorded, episodes=[3, 0], keys=[TOP])
    assert len(dataset) == LENGTHS[3] + LENGTHS[0]
    seen = [read_number(dataset[position][TOP]) for position in range(len(dataset))]
    assert seen == [(episode, step) for episode in (3, 0) for step in range(LENGTHS[episode])]
    assert [dataset[position]["index"].item() for position in (0, -1)] == [20, 6]


def test_only_the_chosen_columns_are_read(recorded: Path) -> None:
    item = LeRobotSet(recorded, keys=["action"])[0]
    assert set(item) == {"action", "task", "timestamp", "frame_index", "episode_index", "index", "task_index"}


def test_a_column_of_an_episode_equals_its_items(recorded: Path) -> None:
    dataset = LeRobotSet(recorded, keys=["matrix", "note"])
    expected = np.stack([frame(1, step)["matrix"] for step in range(LENGTHS[1])])
    assert np.array_equal(dataset.column("matrix", 1), expected)


@pytest.mark.parametrize("position", [sum(LENGTHS), -sum(LENGTHS) - 1])
def test_positions_outside_the_set_are_index_errors(recorded: Path, position: int) -> None:
    with pytest.raises(IndexError, match=f"position: expected one of the {sum(LENGTHS)} frames of .*, got {position}"):
        LeRobotSet(recorded)[position]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_return_what_the_main_process_returns(recorded: Path, context: str) -> None:
    dataset = LeRobotSet(recorded, keys=[TOP, "action"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert torch.equal(torch.cat([batch[TOP] for batch in batches]), torch.stack([item[TOP] for item in dataset]))


@pytest.mark.parametrize(
    ("key", "episode", "numbers", "message"),
    [
        (TOP, 0, [3, 7], r"indices: expected frames 0 to 6 of episode 0, got \[3, 7\]"),
        (TOP, 1, [], r"indices: expected frames 0 to 11 of episode 1, got \[\]"),
        (TOP, 1, [-1], r"indices: expected frames 0 to 11 of episode 1, got \[-1\]"),
        (TOP, 4, [0], "episode: expected one of the 4 episodes of .*, got 4"),
        (TOP, -1, [0], "episode: expected one of the 4 episodes of .*, got -1"),
    ],
)
def test_frames_outside_an_episode_are_refused(
    recorded: Path, key: str, episode: int, numbers: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotSet(recorded).frames_at(key, episode, numbers)


def test_a_column_of_an_episode_that_is_not_there_is_refused(recorded: Path) -> None:
    with pytest.raises(ValueError, match=r"episode: expected one of the 4 episodes of .*, got 4"):
        LeRobotSet(recorded).column("action", 4)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_decoder_that_is_not_there_is_refused_when_the_set_is_opened(recorded: Path) -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of \(.*'pyav'.*\), which work here, got 'opencv'"):
        LeRobotSet(recorded, backend="opencv")


def test_a_set_tells_what_it_holds(recorded: Path) -> None:
    assert repr(LeRobotSet(str(recorded), episodes=[0, 1], keys=[TOP, "action"])) == (
        f"LeRobotSet('{recorded}', robot_type='toy', fps=10, num_episodes=2, num_frames=19, cameras=['{TOP}'])"
    )


def test_the_file_of_a_column_is_the_one_that_is_read(recorded: Path) -> None:
    dataset = LeRobotSet(recorded)
    assert dataset.path_of(TOP, 2) == recorded / f"videos/{TOP}/chunk-000/file-002.mp4"
    assert dataset.path_of(SIDE, 3) == dataset.path_of("action", 3) == recorded / "data/chunk-000/file-003.parquet"
