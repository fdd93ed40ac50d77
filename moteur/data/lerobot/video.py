"""Video decoding: the frames of an mp4 file by number, with PyAV or torchcodec."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

try:
    from torchcodec import decoders as _torchcodec  # pyright: ignore[reportMissingImports]
except (ImportError, OSError, RuntimeError):
    # Wheels built for another torch or FFmpeg fail in each of these ways; PyAV brings its own FFmpeg.
    _torchcodec: ModuleType | None = None

Backend = Literal["pyav", "torchcodec"]
_GOP_SEARCH = 600  # packets looked at to find the second key frame
# Since 17, PyAV gives a conversion a thread for every core, and waking them costs more than a small picture takes.
_ONE_THREAD = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}  # noqa: PLR2004  # the version that began


def available_backends() -> tuple[Backend, ...]:
    """Decoders that work here, in the order of preference."""
    return ("pyav",) if _torchcodec is None else ("torchcodec", "pyav")


def choose_backend(name: Backend | None) -> Backend:
    """Return this decoder, or the preferred one if no name is given; refuse one that does not work here."""
    backends = available_backends()
    if name not in (None, *backends):
        raise ValueError(f"backend: expected one of {backends}, which work here, got {name!r}")
    return name or backends[0]


class PyavDecoder:
    """Video decoder on PyAV, with one decoding thread.

    To reach a frame it either goes on decoding (scan) or jumps to the key frame before it (seek). Key frames come once
    per group of pictures, so a seek decodes at most one group: it scans when the frame is no more than one group ahead
    and seeks otherwise. The group's length is measured in the file when it is opened.

    Attributes:
        gop: Frames from one key frame to the next, as measured.
        num_frames: Number of frames that the file's header gives, 0 where it gives none.
    """

    def __init__(self, path: Path, *, fps: int) -> None:
        self.path = path
        try:
            self._container = av.open(str(path), metadata_errors="replace")  # a damaged title harms no picture
        except (FFmpegError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a video, got a file that cannot be opened ({error})") from error
        if not self._container.streams.video:
            raise ValueError(f"{path}: expected a video stream, got none")
        stream: Any = self._container.streams.video[0]
        if stream.codec_context is None or stream.time_base is None:
            raise ValueError(f"{path}: expected a codec that this FFmpeg knows, got another")
        # More threads delay the first frame after a seek; parallel work is the loader's, one process per core.
        stream.codec_context.thread_count = 1
        self._stream = stream
        self._frames_per_tick = float(stream.time_base * fps)
        self._reformatter = VideoReformatter()
        try:
            self.gop = self._measure_gop()
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"{path}: expected a video, got one that cannot be read ({error})") from error
        self.num_frames: int = stream.frames
        self._position: int | None = None
        self._packets: Any = self._container.demux(self._stream)
        self._decoded: Iterator[Any] = iter(())

    def frames_at(self, indices: Sequence[int]) -> UInt8[Tensor, "frame 3 height width"]:
        """Decode the frames with these numbers, at least one, in this order; repeats cost nothing."""
        wanted = sorted(set(indices))
        pictures: np.ndarray | None = None
        try:
            for place, number in enumerate(wanted):
                frame = self._reach(number)
                if frame is None:
                    raise ValueError(f"{self.path}: expected frame {number}, got {self.num_frames} frames in all")
                shape = (3, frame.height, frame.width)
                if pictures is None:
                    pictures = np.empty((len(wanted), *shape), dtype=np.uint8)
                elif pictures.shape[1:] != shape:
                    raise ValueError(f"{self.path}: expected pictures of {pictures.shape[1:]}, got {shape} as well")
                self._convert(frame, pictures[place])
        except FFmpegError as error:
            self._restart()
            raise ValueError(f"{self.path}: frames {wanted}: expected readable data, got damage ({error})") from error
        assert pictures is not None
        if wanted != list(indices):
            pictures = pictures[np.searchsorted(wanted, indices)]
        return torch.from_numpy(pictures)

    def close(self) -> None:
        """Release the file."""
        self._packets.close()
        self._container.close()

    def _convert(self, frame: Any, picture: np.ndarray) -> None:  # noqa: ANN401  # PyAV's frames carry no types here
        # Planes of one colour each are copied row by row, where interleaved colours have to be taken apart. FFmpeg
        # converts the last pixels of a row differently for the two unless rows fill its vector registers.
        if frame.width % 16:
            interleaved = self._reformatter.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray()
            picture[:] = interleaved.transpose(2, 0, 1)
            return
        planar: Any = self._reformatter.reformat(frame, format="gbrp", **_ONE_THREAD)
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):  # green, blue, red
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            picture[channel] = rows[: planar.height, : planar.width]

    def _reach(self, number: int) -> Any:  # noqa: ANN401  # PyAV's frames carry no types here
        ahead = None if self._position is None else number - self._position
        if ahead is None or not 0 < ahead <= self.gop:
            self._seek(number)
        frame = self._advance(number)
        if frame is None:
            # An index that points past the frame (or a key frame further back): go through the file from its start.
            self._seek(0)
            frame = self._advance(number)
        return frame

    def _seek(self, number: int) -> None:
        # Half a frame later than asked for, so that time stamps rounded upwards are still found.
        self._container.seek(int((number + 0.49) / self._frames_per_tick), stream=self._stream, backward=True)
        # Goes on from wherever the file was sought to. Holds the demuxer and not this object: in a cycle, a decoder and
        # its megabytes would outlive its closing until Python next looks for cycles.
        packets = self._packets
        self._decoded = (frame for packet in packets for frame in packet.decode())

    def _restart(self) -> None:
        # A demuxer that has come to the end or to an error is finished. One that is merely dropped, not closed, leaks
        # 150 bytes, which an hour of seeking makes 150 MB.
        self._packets.close()
        self._packets = self._container.demux(self._stream)
        self._position = None

    def _advance(self, number: int) -> Any:  # noqa: ANN401  # PyAV's frames carry no types here
        for frame in self._decoded:
            if frame.pts is None:
                continue
            self._position = round(frame.pts * self._frames_per_tick)
            if self._position == number:
                return frame
            if self._position > number:
                self._position = None
                return None
        self._restart()
        return None

    def _measure_gop(self) -> int:
        with closing(self._container.demux(self._stream)) as packets:
            later = enumerate(islice(packets, 1, _GOP_SEARCH), 1)
            length = next((place for place, packet in later if packet.is_keyframe), _GOP_SEARCH)
        self._container.seek(0, stream=self._stream)
        return length


class TorchcodecDecoder:
    """Video decoder on torchcodec, where a build fits torch and FFmpeg; otherwise like `PyavDecoder`."""

    def __init__(self, path: Path, *, fps: int) -> None:
        assert _torchcodec is not None
        self.path, self.fps = path, fps
        try:
            self._decoder = _torchcodec.VideoDecoder(str(path), seek_mode="approximate", num_ffmpeg_threads=1)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: expected a video, got a file that cannot be opened ({error})") from error
        self.num_frames: int = self._decoder.metadata.num_frames or 0

    def frames_at(self, indices: Sequence[int]) -> UInt8[Tensor, "frame 3 height width"]:
        """Decode the frames with these numbers, at least one, in this order."""
        try:
            batch = self._decoder.get_frames_at(indices=list(indices))
        except (RuntimeError, IndexError, ValueError) as error:
            where = f"{self.path}: frames {list(indices)}"
            raise ValueError(f"{where}: expected readable data, got damage ({error})") from error
        found = [round(float(seconds) * self.fps) for seconds in batch.pts_seconds]
        if found != list(indices):
            raise ValueError(f"{self.path}: expected frames {list(indices)}, got {found}")
        return batch.data

    def close(self) -> None:
        """Release the file."""
        del self._decoder


Decoder = PyavDecoder | TorchcodecDecoder


def open_video(path: Path, *, fps: int, backend: Backend) -> Decoder:
    """Open an mp4 file with one of `available_backends()`; frame `n` is the one shown at `n / fps` seconds."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing")
    return TorchcodecDecoder(path, fps=fps) if backend == "torchcodec" else PyavDecoder(path, fps=fps)
