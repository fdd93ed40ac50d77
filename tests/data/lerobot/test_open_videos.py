"""How many videos a set keeps open."""

import resource
from pathlib import Path

import pytest
from toy_set import FEATURES, FPS, TOP, numbered_picture, read_number

from moteur.data.lerobot import LeRobotSet, SetWriter, dataset

CAMERA = {TOP: FEATURES[TOP]}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty episodes, so forty videos."""
    root = tmp_path_factory.mktemp("many") / "set"
    with SetWriter(root, fps=FPS, features=CAMERA, codec="libx264") as writer:
        for episode in range(40):
            writer.add({TOP: numbered_picture(episode % 4, 0)}, "move")
            writer.save_episode()
    return root


@pytest.mark.parametrize(("files", "expected"), [(1024, 40), (64, 80)])
def test_the_videos_of_forty_episodes_stay_open_where_the_limit_of_open_files_allows(
    many: Path, monkeypatch: pytest.MonkeyPatch, files: int, expected: int
) -> None:
    opened: list[Path] = []
    open_video = dataset.open_video

    def counted(path: Path, **options: object) -> object:
        opened.append(path)
        return open_video(path, **options)

    monkeypatch.setattr(dataset, "open_video", counted)
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
