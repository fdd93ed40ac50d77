"""Encoding one episode: its frames checked, its pictures into mp4 files with LeRobot's settings, its statistics."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from jaxtyping import UInt8

from moteur.data.lerobot.info import Feature
from moteur.data.lerobot.stats import PictureHistogram, Summary, summarise_numbers
from moteur.data.lerobot.table import cast_exactly, png_bytes

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
        self.count = 0
        self._container = av.open(str(path), mode="w")
        stream: Any = self._container.add_stream(codec, rate=fps, options=_OPTIONS[codec] | {"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        self._stream = stream

    def add(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Encode the next picture."""
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


class EpisodeBuffer:
    """Columns, pictures and statistics of one episode.

    Videos are encoded into the scratch folder at once; what stays in memory is the numbers, texts and PNG bytes.
    """

    def __init__(self, features: Mapping[str, Feature], *, scratch: Path, fps: int, codec: str, gop: int) -> None:
        self.features, self.scratch = features, scratch
        self.columns: dict[str, list[Any]] = {key: [] for key, entry in features.items() if entry.dtype != "video"}
        self.tasks: list[str] = []
        self.histograms = {key: PictureHistogram() for key, entry in features.items() if entry.is_visual}
        self._encoding: dict[str, Any] = {"fps": fps, "codec": codec, "gop": gop}
        self._encoders: dict[str, VideoWriter] = {}
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Add one frame, as `LeRobotWriter.add` describes."""
        if set(frame) != set(self.features):
            missing, unknown = sorted(set(self.features) - set(frame)), sorted(set(frame) - set(self.features))
            raise ValueError(f"frame: expected the set's features, got {missing} missing and {unknown} unknown")
        # Every value is checked before any is kept.
        values = {key: checked_value(key, frame[key], entry) for key, entry in self.features.items()}
        task = checked_text("task", task)
        with self._only_if_complete():
            for key, value in values.items():
                if self.features[key].dtype == "video":
                    self._encoder(key).add(value)
            for key, value in values.items():
                if self.features[key].is_visual:
                    self.histograms[key].add(value)
                if key in self.columns:
                    self.columns[key].append(png_bytes(value) if self.features[key].dtype == "image" else value)
            self.tasks.append(task)

    def finish(self) -> Mapping[str, Path]:
        """Finish the videos and return their files."""
        with self._only_if_complete():
            for encoder in self._encoders.values():
                encoder.close()
        return {key: encoder.path for key, encoder in self._encoders.items()}

    def discard(self) -> None:
        """Close the video files, which nobody will use."""
        for encoder in self._encoders.values():
            encoder.discard()

    def summaries(self) -> dict[str, Summary]:
        """Statistics of every column that has any."""
        pictures = {key: histogram.summarise() for key, histogram in self.histograms.items()}
        numbers = {
            key: summarise_numbers(np.stack(self.columns[key]).reshape(len(self), *entry.shape))
            for key, entry in self.features.items()
            if entry.is_numeric
        }
        return pictures | numbers

    @contextmanager
    def _only_if_complete(self) -> Generator[None]:
        """Refuse an episode in which a picture has failed, and note that one fails now."""
        if self._failure is not None:
            failed = f"got one that failed ({self._failure!r:.200}); discard_episode() and record it again"
            raise ValueError(f"episode: expected every picture, {failed}") from self._failure
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def _encoder(self, key: str) -> VideoWriter:
        if key not in self._encoders:
            height, width, _ = self.features[key].shape
            path = self.scratch / f"{key}.mp4"
            self._encoders[key] = VideoWriter(path, height=height, width=width, **self._encoding)
        return self._encoders[key]


def checked_text(key: str, value: object) -> str:
    """Return a text that a table can hold."""
    if not isinstance(value, str) or value.encode(errors="ignore").decode() != value:
        raise ValueError(f"{key}: expected a UTF-8 string, got {value!r:.80}")
    return value


def checked_value(key: str, value: Any, feature: Feature) -> Any:  # noqa: ANN401  # a frame may hold anything
    """Return a frame's value in the type of its column; fractions are rounded to it, integers never changed."""
    if feature.dtype == "string":
        return checked_text(key, value)
    dtype = "uint8" if feature.is_visual else feature.dtype
    declared = f"{key}: expected {dtype} of shape {feature.shape}"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{declared}, got {value!r:.80} ({error})") from error
    scalar = feature.shape == (1,) and array.shape == ()
    integers = np.dtype(dtype).kind in "iu" and array.dtype.kind == "f"
    exact = array.dtype == dtype if feature.is_visual else array.dtype.kind in "biuf" and not integers
    if not exact or (array.shape != feature.shape and not scalar):
        raise ValueError(f"{declared}, got {array.dtype} of {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{key}: expected finite numbers, got {array.reshape(-1).tolist()!r:.80}")
    try:
        return array if feature.is_visual else cast_exactly(array, dtype)
    except OverflowError as error:
        raise ValueError(f"{key}: expected numbers that {dtype} can hold, got {error}") from error
