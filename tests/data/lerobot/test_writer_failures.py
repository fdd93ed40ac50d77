"""A full disk: the error that says so arrives, and the set stays whole."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_set import FEATURES, FPS, TOP, frame, read_number

from moteur.data import Feature, LeRobotSet, LeRobotWriter
from moteur.data.lerobot.encode import VideoWriter

FULL = "File too large"
VIDEO = r"File too large: .*top.mp4"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write further, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def add_noise(writer: LeRobotWriter, steps: int = 6) -> None:
    rng = np.random.default_rng(0)
    for step in range(steps):
        writer.add(frame(0, step) | {TOP: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)}, "pick")


def begun(root: Path) -> LeRobotWriter:
    """A set with one finished episode."""
    writer = LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264")
    writer.add(frame(0, 0), "pick")
    writer.save_episode()
    return writer


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_a_video_that_does_not_fit_says_so_when_it_is_closed(tmp_path: Path, codec: str) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", fps=FPS, height=64, width=64, codec=codec)
    with files_no_larger_than(100):
        for seed in range(6):
            writer.add(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        with pytest.raises(OSError, match=FULL) as caught:
            writer.close()
        assert caught.value.errno == errno.EFBIG
    writer.discard()


def test_a_video_can_be_closed_twice(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", fps=FPS, height=64, width=64, codec="libx264")
    writer.add(np.zeros((64, 64, 3), dtype=np.uint8))
    writer.close()
    size = (tmp_path / "clip.mp4").stat().st_size
    writer.close()
    assert (tmp_path / "clip.mp4").stat().st_size == size


def check_goes_on(root: Path) -> None:
    """The set opens with its one finished episode, and another can be recorded."""
    assert len(LeRobotSet(root)) == 1
    with LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264", resume=True) as writer:
        writer.add(frame(1, 4), "pick")
        writer.save_episode()
    dataset = LeRobotSet(root)
    assert [read_number(dataset[place][TOP]) for place in range(2)] == [(0, 0), (1, 4)]


def test_a_full_disk_surfaces_as_it_is_and_the_set_stays_whole(tmp_path: Path) -> None:
    writer = begun(tmp_path)
    add_noise(writer)
    with pytest.raises(OSError, match=VIDEO) as caught, writer, files_no_larger_than(5000):
        writer.save_episode()
    assert caught.value.errno == errno.EFBIG
    assert not hasattr(caught.value, "__notes__")
    check_goes_on(tmp_path)


def test_a_disk_still_full_at_the_end_is_noted_beside_what_came_first(tmp_path: Path) -> None:
    writer = begun(tmp_path)
    add_noise(writer)
    with files_no_larger_than(5000), pytest.raises(OSError, match=VIDEO) as caught, writer:
        writer.save_episode()
    (note,) = caught.value.__notes__
    assert note.startswith("closing the set failed as well: OSError")
    check_goes_on(tmp_path)


def test_after_a_failed_video_the_episode_is_refused_until_it_is_discarded(tmp_path: Path) -> None:
    with begun(tmp_path) as writer:
        add_noise(writer)
        with files_no_larger_than(5000), pytest.raises(OSError, match=VIDEO):
            writer.save_episode()
        with pytest.raises(
            ValueError, match=r"episode: expected every picture, got one that failed \(OSError.*discard_episode\(\) and"
        ):
            writer.save_episode()
        with pytest.raises(ValueError, match=r"episode: expected every picture, got one that failed"):
            writer.add(frame(0, 7), "pick")
        writer.discard_episode()
        writer.add(frame(1, 4), "pick")
        writer.save_episode()
    assert read_number(LeRobotSet(tmp_path)[1][TOP]) == (1, 4)


def test_a_save_that_failed_before_the_videos_can_be_tried_again(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path, fps=FPS, features={"force": Feature("float32", (1,))}) as writer:
        writer.add({"force": 1.0}, "push")
        with files_no_larger_than(1000), pytest.raises(OSError, match=FULL):
            writer.save_episode()
        assert len(LeRobotSet(tmp_path)) == 0
        writer.save_episode()
    assert LeRobotSet(tmp_path)[0]["force"] == 1.0


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("cut", range(1, 7))
def test_a_save_that_failed_at_any_rename_can_be_tried_again_or_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, again: bool
) -> None:
    replace, renames = os.replace, iter(range(1, 100))

    def failing(source: Path, target: Path) -> None:
        if next(renames) == cut:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with begun(tmp_path) as writer:
        writer.add(frame(1, 0), "place")
        writer.add(frame(1, 1), "pick")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(OSError, match="No space left"):
                writer.save_episode()
        assert len(LeRobotSet(tmp_path)) == 1
        if not again:
            writer.discard_episode()
            writer.add(frame(2, 5), "push")
        writer.save_episode()
    dataset = LeRobotSet(tmp_path)
    assert [read_number(item[TOP]) for item in dataset] == [(0, 0)] + ([(1, 0), (1, 1)] if again else [(2, 5)])
    assert [item["task"] for item in dataset] == ["pick"] + (["place", "pick"] if again else ["push"])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_of_a_frame_whose_picture_failed_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    cameras = {key: Feature("video", (64, 64, 3)) for key in ("first", "second")}
    features = {"force": Feature("float32", (1,)), "view": Feature("image", (64, 64, 3))} | cameras
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    values = {"force": 1.0, "view": picture, "first": picture, "second": picture}
    with LeRobotWriter(tmp_path, fps=FPS, features=features, codec="libx264") as writer:
        writer.add(values, "look")
        add = VideoWriter.add

        def failing(self: VideoWriter, picture: np.ndarray) -> None:
            if "second" in str(self.path):
                raise error
            add(self, picture)

        with monkeypatch.context() as patch:
            patch.setattr(VideoWriter, "add", failing)
            with pytest.raises(type(error)) as caught:
                writer.add(values, "look")
        assert caught.value is error
        buffer = writer._buffer
        assert len(buffer) == 1
        assert {len(column) for column in buffer.columns.values()} == {1}
        assert {histogram.num_frames for histogram in buffer.histograms.values()} == {1}
        with pytest.raises(ValueError, match="episode: expected every picture, got one that failed"):
            writer.save_episode()
        writer.discard_episode()
        writer.add(values, "look")
        writer.save_episode()
    assert len(LeRobotSet(tmp_path)) == 1


def test_a_closed_writer_takes_nothing_more(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path, fps=FPS, features={"force": Feature("float32", (1,))})
    writer.add({"force": 1.0}, "push")
    writer.close()
    for action in (lambda: writer.add({"force": 1.0}, "push"), writer.save_episode):
        with pytest.raises(
            ValueError, match="writer: expected an open one, got one that is closed; open the set with resume=True"
        ):
            action()
    writer.close()
    assert len(LeRobotSet(tmp_path)) == 0


def test_a_writer_whose_closing_failed_takes_nothing_more_and_can_be_closed_again(tmp_path: Path) -> None:
    writer = begun(tmp_path)
    add_noise(writer)
    with files_no_larger_than(100), pytest.raises(OSError, match=FULL):
        writer.close()
    for action in (lambda: writer.add(frame(0, 7), "pick"), writer.save_episode, writer.discard_episode):
        with pytest.raises(ValueError, match="writer: expected an open one, got one that is closed"):
            action()
    writer.close()
    check_goes_on(tmp_path)


def test_everything_has_reached_the_disk_before_info_json_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure keeps what was flushed and anything else or not: contents, then names, then info.json."""
    root, events = tmp_path / "set", list[tuple[str, Path]]()
    fsync, replace = os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        events.append(("flush", Path(f"/proc/self/fd/{descriptor}").resolve()))
        fsync(descriptor)

    def renaming(source: Path, target: Path) -> None:
        assert ("flush", source.resolve()) in events
        events.append(("rename", target.resolve()))
        replace(source, target)

    with LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264") as writer:
        writer.add(frame(0, 0), "pick")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", flushing)
            patch.setattr(os, "replace", renaming)
            writer.save_episode()
    last = events.index(("rename", (root / "meta/info.json").resolve()))
    assert events[last + 1 :].count(("flush", (root / "meta").resolve())) == 1
    renamed = [(place, path) for place, (kind, path) in enumerate(events[:last]) if kind == "rename"]
    assert len(renamed) == 5
    for place, path in renamed:  # the file's folder, and those that were made for it
        for folder in [folder for folder in path.parents if folder.is_relative_to(root.resolve())]:
            assert ("flush", folder) in events[place:last], folder


@pytest.mark.parametrize("broken", range(3))
def test_when_a_file_cannot_be_written_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """A table or JSON file fails: not even the files that were complete have changed the set."""

    def content() -> dict[Path, bytes]:
        files = [path for path in tmp_path.rglob("*") if path.is_file() and ".recording" not in path.parts]
        return {path: path.read_bytes() for path in files}

    with begun(tmp_path) as writer:
        writer.add(frame(1, 0), "place")
        before, write, calls = content(), pq.write_table, iter(range(10))

        def failing(*arguments: object, **options: object) -> None:
            if next(calls) == broken:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", failing)
            with pytest.raises(OSError, match="No space left"):
                writer.save_episode()
        assert content() == before
        writer.save_episode()
    assert len(LeRobotSet(tmp_path)) == 2
