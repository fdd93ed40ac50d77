"""What a set keeps open: how much, and for whom."""

import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_set import FEATURES, FPS, TOP, numbered_picture, read_number

from moteur.data import BoundedCache, LeRobotSet, LeRobotWriter
from moteur.data.lerobot import dataset as dataset_module

CAMERA = {TOP: FEATURES[TOP]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty episodes, so forty videos."""
    root = tmp_path_factory.mktemp("many") / "set"
    with LeRobotWriter(root, fps=FPS, features=CAMERA, codec="libx264") as writer:
        for episode in range(40):
            writer.add({TOP: numbered_picture(episode % 4, 0)}, "move")
            writer.save_episode()
    return root


@pytest.mark.parametrize(("files", "expected"), [(1024, 40), (64, 80)])
def test_the_videos_of_forty_episodes_stay_open_where_the_limit_of_open_files_allows(
    many: Path, monkeypatch: pytest.MonkeyPatch, files: int, expected: int
) -> None:
    opened: list[Path] = []
    open_video = dataset_module.open_video

    def counted(path: Path, **options: object) -> object:
        opened.append(path)
        return open_video(path, **options)

    monkeypatch.setattr(dataset_module, "open_video", counted)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    reader = LeRobotSet(many)
    for _ in range(2):
        for position in range(len(reader)):
            assert read_number(reader[position][TOP]) == (position % 4, 0)
    assert len(opened) == expected
    assert len(set(opened)) == 40
    reader.close()


@pytest.mark.parametrize(
    ("files", "expected"), [(256, 64), (1024, 256), (20_000, 256), (resource.RLIM_INFINITY, 256), (3, 1)]
)
def test_a_quarter_of_the_open_files_may_be_videos_and_no_more_than_256(
    many: Path, monkeypatch: pytest.MonkeyPatch, files: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert LeRobotSet(many)._videos.budget == expected  # without opening 256 files


def test_open_videos_stay_within_the_budget(recorded: Path) -> None:
    videos = BoundedCache(2)
    dataset = LeRobotSet(recorded, videos=videos)
    for position in (0, 8, 19, 21, 0):
        dataset[position]
        assert len(videos) <= 2
    dataset.close()
    assert len(videos) == 0


def test_decoded_tables_stay_within_the_budget_in_bytes(recorded: Path) -> None:
    tables = BoundedCache(1500)
    dataset = LeRobotSet(recorded, keys=["action", "matrix"], tables=tables)
    for position in range(len(dataset)):
        dataset[position]
        assert tables._entries.currsize <= 1500
    assert len(tables) >= 1


def test_a_set_travels_to_another_process_without_what_it_has_open(recorded: Path) -> None:
    dataset = LeRobotSet(recorded)
    before = dataset[9]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301  # our own bytes
    assert len(copy._videos) == 0
    assert torch.equal(copy[9][TOP], before[TOP])


def test_a_forked_process_opens_its_own_videos(recorded: Path) -> None:
    dataset = LeRobotSet(recorded)
    expected = dataset[9][TOP]
    (parent,) = (decoder for decoder, _ in dataset._videos._entries.values())
    child = os.fork()
    if child == 0:
        same = torch.equal(dataset[9][TOP], expected)
        fresh = all(decoder is not parent for decoder, _ in dataset._videos._entries.values())
        os._exit(0 if same and fresh else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_cache_without_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="budget: expected at least 1, got 0"):
        BoundedCache(0)


def test_a_value_larger_than_the_budget_is_kept_alone_until_the_next() -> None:
    cache, built = BoundedCache(10), list[str]()

    def value(name: str) -> str:
        built.append(name)
        return name

    for name, cost in (("small", 1), ("large", 50), ("large", 50), ("small", 1)):
        assert cache.get(name, lambda name=name: value(name), lambda _, cost=cost: cost) == name
    assert built == ["small", "large", "small"]
    assert cache._entries.currsize == 1


def test_what_no_longer_fits_is_closed() -> None:
    closed: list[int] = []

    class File:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)

    cache = BoundedCache(2)
    for number in (0, 1, 0, 2):
        cache.get(number, lambda number=number: File(number))
    assert closed == [1]
    cache.clear()
    assert closed == [1, 0, 2]


def test_threads_that_share_a_set_get_their_own_frames(recorded: Path) -> None:
    dataset = LeRobotSet(recorded, keys=[TOP, "matrix"], videos=BoundedCache(2))
    positions = np.random.default_rng(0).integers(0, len(dataset), size=400).tolist()
    expected = {position: dataset[position] for position in set(positions)}
    with ThreadPoolExecutor(8) as pool:
        for position, item in zip(positions, pool.map(dataset.__getitem__, positions), strict=True):
            assert read_number(item[TOP]) == read_number(expected[position][TOP])
            assert torch.equal(item["matrix"], expected[position]["matrix"])
