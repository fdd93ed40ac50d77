"""Video encoding: pictures into an mp4 file one at a time, with LeRobot's settings."""

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from jaxtyping import UInt8

# What LeRobot writes: yuv420p, a key frame every second frame, constant quality. One encoder thread: the recorder runs
# one encoder per camera at the same time.
_OPTIONS = {
    "libsvtav1": {"crf": "30", "preset": "12", "svtav1-params": "lp=1"},
    "libx264": {"crf": "23", "preset": "veryfast"},
}
CODEC_NAMES = {"libsvtav1": "av1", "libx264": "h264"}
# SVT-AV1 writes a page of settings to the terminal for every file, and listens only to this variable.
_QUIET = ("SVT_LOG", "1")


def check_encoding(*, fps: int, height: int, width: int, codec: str, gop: int) -> None:
    """Refuse settings that the encoder does not take, found out by opening one."""
    if codec not in _OPTIONS:
        raise ValueError(f"codec: expected one of {list(_OPTIONS)}, got {codec!r}")
    if height % 2 or width % 2:
        raise ValueError(f"shape: expected an even height and width for yuv420p, got {height} and {width}")
    os.environ.setdefault(*_QUIET)
    try:
        context: Any = av.CodecContext.create(codec, "w")
    except UnknownCodecError as error:
        there = sorted(av.codecs_available & set(_OPTIONS))
        raise ValueError(f"codec: expected one that the FFmpeg of this PyAV has ({there}), got {codec!r}") from error
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate, context.thread_count = Fraction(1, fps), Fraction(fps), 1
    context.options = _OPTIONS[codec] | {"g": str(gop)}
    try:
        with _same_priority():
            context.open()
    except FFmpegError as error:
        settings = f"height {height}, width {width}, fps {fps}, gop {gop}"
        raise ValueError(f"codec: expected settings that {codec} encodes, got {settings} ({error})") from error


class VideoWriter:
    """Video encoder that writes pictures as they come, so a recording needs no memory per frame.

    Settings are those that `check_encoding` let pass. HEVC is read but not written: some short files that x265 wrote
    through PyAV 18 showed earlier pictures again in the middle.
    """

    def __init__(
        self, path: Path, *, fps: int, height: int, width: int, codec: str = "libsvtav1", gop: int = 2
    ) -> None:
        os.environ.setdefault(*_QUIET)
        self.path, self._closed = path, False
        self.count, self._shape = 0, (height, width, 3)
        self._container = av.open(str(path), mode="w")
        stream: Any = self._container.add_stream(codec, rate=fps, options=_OPTIONS[codec] | {"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        self._stream = stream

    def add(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Encode the next picture."""
        assert picture.shape == self._shape
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self.count, self._stream.codec_context.time_base
        # The encoder starts with the first picture.
        with _same_priority() if self.count == 0 else nullcontext():
            self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the file's index. Later calls write nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close a file that will not be used; errors are ignored."""
        self._closed = True
        with suppress(FFmpegError):
            self._container.close()


@contextmanager
def _same_priority() -> Generator[None]:
    """Restore the scheduling policy of this process's threads.

    Run by root, as in most containers, SVT-AV1 gives its own threads and the calling one the highest real-time priority
    and keeps it: the process, and all that it starts later, would starve everything else on the machine.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for task in tasks.iterdir():
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(int(task.name)) != policy:
                    os.sched_setscheduler(int(task.name), policy, parameters)
