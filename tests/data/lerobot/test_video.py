"""Every frame by its number, whatever the codec and the spacing of key frames."""

import ctypes
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_set import numbered_picture, read_number

from moteur.data.lerobot.encode import VideoWriter, check_encoding
from moteur.data.lerobot.video import PyavDecoder, available_backends, choose_backend, open_video

FRAMES, FPS = 90, 30
ENCODINGS = [("libsvtav1", 2), ("libx264", 2), ("libx264", 30), ("libx264", 1000), ("libx264", 12)]


def encode(path: Path, codec: str = "libx264", gop: int = 2, *, frames: int = FRAMES, size: int = 64) -> Path:
    writer = VideoWriter(path, fps=FPS, height=size, width=size, codec=codec, gop=gop)
    for number in range(frames):
        writer.add(
            np.resize(numbered_picture(0, number), (size, size, 3)) if size != 64 else numbered_picture(0, number)
        )
    writer.close()
    return path


@pytest.fixture(scope="session", params=ENCODINGS, ids=lambda pair: f"{pair[0]}-gop{pair[1]}")
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, gop = request.param
    return encode(tmp_path_factory.mktemp("clips") / f"{codec}-{gop}.mp4", codec, gop)


@pytest.mark.parametrize("backend", available_backends())
@given(requests=st.lists(st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=5), min_size=1, max_size=8))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frames_in_any_order_are_the_ones_asked_for(clip: Path, backend: str, requests: list[list[int]]) -> None:
    decoder = open_video(clip, fps=FPS, backend=backend)
    for numbers in requests:
        assert [read_number(picture)[1] for picture in decoder.frames_at(numbers)] == numbers
    decoder.close()


def test_every_frame_is_found_alone_and_in_one_sweep(clip: Path) -> None:
    decoder = open_video(clip, fps=FPS, backend="pyav")
    sweep = decoder.frames_at(range(FRAMES))
    assert [read_number(picture)[1] for picture in sweep] == list(range(FRAMES))
    for number in reversed(range(0, FRAMES, 7)):
        assert torch.equal(decoder.frames_at([number])[0], sweep[number])


@pytest.mark.parametrize(("gop", "expected"), [(2, 2), (30, 30), (1000, 600)])
def test_the_group_of_pictures_is_measured_in_the_file(tmp_path: Path, gop: int, expected: int) -> None:
    assert PyavDecoder(encode(tmp_path / "clip.mp4", gop=gop), fps=FPS).gop == expected


def test_every_second_picture_is_a_key_frame_unless_told_otherwise(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", fps=FPS, height=64, width=64, codec="libx264")
    for number in range(8):
        writer.add(numbered_picture(0, number))
    writer.close()
    with av.open(str(tmp_path / "clip.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [True, False] * 4


def test_near_frames_are_scanned_and_far_ones_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PyavDecoder(encode(tmp_path / "clip.mp4", gop=10), fps=FPS)
    sought: list[int] = []
    seek = decoder._seek
    monkeypatch.setattr(decoder, "_seek", lambda number: (sought.append(number), seek(number)))
    decoder.frames_at([5, 15, 25, 36])
    assert sought == [5, 36]
    decoder.frames_at([20])
    assert sought == [5, 36, 20]


def test_time_stamps_off_the_frame_grid_by_less_than_half_a_frame_are_absorbed(tmp_path: Path) -> None:
    path = tmp_path / "drift.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "4", "bf": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 3000)
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(numbered_picture(0, number), format="rgb24")
            frame.pts, frame.time_base = number * 100 + (number * 37 % 80 - 40), stream.codec_context.time_base
            frame.pts = max(frame.pts, 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    decoder = open_video(path, fps=FPS, backend="pyav")
    assert [read_number(picture)[1] for picture in decoder.frames_at(range(40))] == list(range(40))
    assert [read_number(decoder.frames_at([number])[0])[1] for number in range(39, 0, -5)] == list(range(39, 0, -5))


def test_the_writer_puts_key_frames_where_it_says(tmp_path: Path) -> None:
    with av.open(str(encode(tmp_path / "clip.mp4", "libsvtav1", 2, frames=12))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    assert [packet.is_keyframe for packet in packets] == [True, False] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codec": "mpeg2video"}, "codec: expected one of .'libsvtav1', 'libx264'., got 'mpeg2video'"),
        ({"height": 63}, "shape: expected an even height and width for yuv420p, got 63 and 64"),
    ],
)
def test_what_cannot_be_encoded_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_encoding(**({"fps": FPS, "height": 64, "width": 64, "codec": "libx264", "gop": 2} | arguments))


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.mp4: missing"):
        open_video(tmp_path / "gone.mp4", fps=FPS, backend="pyav")


def test_a_backend_that_does_not_import_lists_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moteur.data.lerobot.video._torchcodec", None)
    assert choose_backend(None) == "pyav"
    with pytest.raises(ValueError, match=r"backend: expected one of \('pyav',\), which work here, got 'torchcodec'"):
        choose_backend("torchcodec")


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(ValueError, match=r"text.mp4: expected a video, got a file that cannot be opened \(.*\)"):
        open_video(path, fps=FPS, backend="pyav")


def test_a_frame_past_the_end_is_named_with_the_count(tmp_path: Path) -> None:
    decoder = open_video(encode(tmp_path / "clip.mp4", frames=5), fps=FPS, backend="pyav")
    with pytest.raises(ValueError, match=r"clip.mp4: expected frame 9, got 5 frames in all"):
        decoder.frames_at([1, 9])
    assert read_number(decoder.frames_at([3])[0])[1] == 3


def test_a_file_without_pictures_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match=r"sound.wav: expected a video stream, got none"):
        open_video(path, fps=FPS, backend="pyav")


@pytest.mark.parametrize("size", [(34, 50), (96, 128), (218, 178), (34, 16), (98, 80), (60, 88), (480, 640), (50, 224)])
def test_colours_are_those_of_the_usual_conversion(tmp_path: Path, size: tuple[int, int]) -> None:
    path, rng = tmp_path / "colours.mp4", np.random.default_rng(0)
    writer = VideoWriter(path, fps=FPS, height=size[0], width=size[1], codec="libx264")
    for _ in range(4):
        writer.add(rng.integers(0, 256, size=(*size, 3), dtype=np.uint8))
    writer.close()
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    found = open_video(path, fps=FPS, backend="pyav").frames_at(range(4))
    assert np.array_equal(found.permute(0, 2, 3, 1), expected)


def test_hevc_is_read_at_any_frame(tmp_path: Path) -> None:
    path = tmp_path / "hevc.mp4"
    single = "log-level=error:bframes=0:frame-threads=1:pools=none:keyint=12:min-keyint=12:scenecut=0"
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx265", rate=FPS, options={"crf": "20", "x265-params": single})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_picture(0, number), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        sweep = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    decoder = open_video(path, fps=FPS, backend="pyav")
    for numbers in ([39, 0], [11, 12, 13], [25, 5, 25], [38]):
        assert np.array_equal(decoder.frames_at(numbers).permute(0, 2, 3, 1), sweep[numbers])


def test_encoding_leaves_the_scheduling_of_this_process_alone(tmp_path: Path) -> None:
    tasks = Path("/proc/self/task")
    before = os.sched_getscheduler(0)
    encode(tmp_path / "clip.mp4", "libsvtav1", frames=3)
    assert {os.sched_getscheduler(int(task.name)) for task in tasks.iterdir()} == {before}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux, which lists a process's threads")
def test_open_videos_start_no_threads(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", size=224, frames=4)
    before = {task.name for task in Path("/proc/self/task").iterdir()}
    decoders = [open_video(path, fps=FPS, backend="pyav") for _ in range(3)]
    assert [tuple(decoder.frames_at([0, 3]).shape) for decoder in decoders] == [(2, 3, 224, 224)] * 3
    assert {task.name for task in Path("/proc/self/task").iterdir()} <= before


# In a process of its own, without the run-time shape checks, which keep what they look at.
READ_AGAIN = """
import ctypes, gc, sys
from pathlib import Path
from moteur.data.lerobot.video import open_video

gc.disable()  # what is closed must be freed at once, not at the next search for cycles

class HeapUse(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library, path = ctypes.CDLL(None), Path(sys.argv[1])
library.mallinfo2.restype = HeapUse
kept = open_video(path, fps=30, backend="pyav")

def used(times):
    for _ in range(times):
        kept.frames_at([3, 40, 80])
        fresh = open_video(path, fps=30, backend="pyav")
        fresh.frames_at([7])
        fresh.close()
    return library.mallinfo2().uordblks

before = used(120)
print(used(60) - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc, which counts what is allocated")
def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4")
    done = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, "-c", READ_AGAIN, str(path)], capture_output=True, text=True, check=True
    )
    # A demuxer that is dropped without being closed leaves 150 bytes, of which there would be four each time.
    assert int(done.stdout) < 60 * 150
