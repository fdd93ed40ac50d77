"""Videos that are cut, damaged, or another episode's: the frames asked for, or an error that names the file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toy_set import FPS, LENGTHS, TOP, numbered_picture, read_number

from moteur.data import LeRobotSet
from moteur.data.lerobot.encode import VideoWriter

FUZZ = settings(
    deadline=None,
    max_examples=50,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"


def clip(path: Path, *, frames: int, codec: str = "libx264", gop: int = 2) -> bytes:
    writer = VideoWriter(path, fps=FPS, height=64, width=64, codec=codec, gop=gop)
    for number in range(frames):
        writer.add(numbered_picture(0, number))
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def damaged(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(recorded, tmp_path_factory.mktemp("fuzz") / "set"))


@pytest.fixture(scope="module", params=[("libsvtav1", 2), ("libx264", 2), ("libx264", 30)], ids=str)
def content(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    codec, gop = request.param
    return clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=LENGTHS[0], codec=codec, gop=gop)


def frames_or_complaint(root: Path) -> list[tuple[int, int]]:
    """Numbers of the pictures of the first episode, empty where an error names the file."""
    dataset = LeRobotSet(root, keys=[TOP])
    try:
        pictures = dataset.frames_at(TOP, 0, range(LENGTHS[0]))
    except ValueError as error:
        assert str(root / VIDEO) in str(error), error  # noqa: PT017  # either outcome is right
        return []
    finally:
        dataset.close()
    assert pictures.shape == (LENGTHS[0], 3, 64, 64)
    return [read_number(picture) for picture in pictures]


@given(place=st.integers(0, 2**20))
@FUZZ
def test_a_video_cut_anywhere_is_whole_or_named(damaged: Path, content: bytes, place: int) -> None:
    (damaged / VIDEO).write_bytes(content[: place % (len(content) + 1)])
    assert frames_or_complaint(damaged) in ([], [(0, number) for number in range(LENGTHS[0])])


@given(edits=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=12))
@FUZZ
def test_a_video_with_changed_bytes_is_read_or_named(
    damaged: Path, content: bytes, edits: list[tuple[int, int]]
) -> None:
    data = np.frombuffer(content, dtype=np.uint8).copy()
    for place, value in edits:
        data[place % len(data)] = value
    (damaged / VIDEO).write_bytes(data.tobytes())
    frames_or_complaint(damaged)


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8, 20])
def test_a_video_of_another_length_is_refused(damaged: Path, tmp_path: Path, frames: int) -> None:
    (damaged / VIDEO).write_bytes(clip(tmp_path / "clip.mp4", frames=frames))
    dataset = LeRobotSet(damaged, keys=[TOP])
    if frames == LENGTHS[0]:
        assert [read_number(dataset[number][TOP]) for number in range(frames)] == [(0, n) for n in range(frames)]
    else:
        with pytest.raises(ValueError, match=rf"file-000.mp4: expected 7 frames by the episode index, got {frames}"):
            dataset[0]
