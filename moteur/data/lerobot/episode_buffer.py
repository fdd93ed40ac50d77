"""The episode being recorded: checked frames, encoded as they come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moteur.data.lerobot.columns import png_bytes
from moteur.data.lerobot.conversion import converted
from moteur.data.lerobot.encode import VideoWriter
from moteur.data.lerobot.info import Feature
from moteur.data.lerobot.summary import PictureHistogram, Summary, summarise_numbers


class EpisodeBuffer:
    """Columns, pictures and statistics of one episode.

    Videos are encoded into the scratch folder at once; what stays in memory is the numbers, texts and PNG bytes.

    Args:
        features: The columns to record, without bookkeeping.
        scratch: An empty folder for the videos.
        fps: Frames per second.
        codec: Video encoder.
        gop: Frames from one key frame to the next.
    """

    def __init__(self, features: Mapping[str, Feature], *, scratch: Path, fps: int, codec: str, gop: int) -> None:
        self.features, self.scratch = features, scratch
        self.fps, self.codec, self.gop = fps, codec, gop
        self.columns: dict[str, list[Any]] = {key: [] for key, entry in features.items() if entry.dtype != "video"}
        self.tasks: list[str] = []
        self.histograms = {key: PictureHistogram() for key, entry in features.items() if entry.is_visual}
        self._encoders: dict[str, VideoWriter] = {}
        self._failure: BaseException | None = None
        self._discarded = False

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Add one frame.

        Raises:
            ValueError: A feature is missing, unknown, of another shape or type, or holds what its type cannot; the key
                is named, and the frame leaves no trace. Or an earlier picture could not be encoded.
            OSError: A picture could not be encoded or written. The frame is not counted, but some cameras may have it,
                so the episode can only be discarded.
        """
        self._check_whole()
        if set(frame) != set(self.features):
            missing, extra = sorted(set(self.features) - set(frame)), sorted(set(frame) - set(self.features))
            raise ValueError(f"frame must hold exactly the set's features; missing {missing}, unknown {extra}")
        # Every value is checked before any is kept.
        values = {key: checked_value(key, frame[key], entry) for key, entry in self.features.items()}
        task = checked_text("task", task)
        try:
            for key, value in values.items():
                if self.features[key].dtype == "video":
                    self._encoder(key).add(value)
            for key, value in values.items():
                if self.features[key].is_visual:
                    self.histograms[key].add(value)
                if key in self.columns:
                    self.columns[key].append(png_bytes(value) if self.features[key].dtype == "image" else value)
            self.tasks.append(task)
        except BaseException as error:
            self._failure = error
            raise

    def finish(self) -> Mapping[str, Path]:
        """Finish the videos and return their files.

        Raises:
            OSError: A video could not be written to its end.
            ValueError: That, or the encoding of a picture, has failed before.
        """
        self._check_whole()
        try:
            for encoder in self._encoders.values():
                encoder.close()
        except BaseException as error:
            self._failure = error
            raise
        return {key: self._video_path(key) for key in self._encoders}

    def discard(self) -> None:
        """Let go of the video files; the buffer takes nothing more."""
        self._discarded = True
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

    def _check_whole(self) -> None:
        if self._discarded:
            raise ValueError("the writer is closed; open the set again with resume=True")
        if self._failure is not None:
            raise ValueError(
                f"the episode has lost a picture ({self._failure!r:.200}); discard_episode() and record it again"
            ) from self._failure

    def _encoder(self, key: str) -> VideoWriter:
        if key not in self._encoders:
            height, width, _ = self.features[key].shape
            self._encoders[key] = VideoWriter(
                self._video_path(key), fps=self.fps, height=height, width=width, codec=self.codec, gop=self.gop
            )
        return self._encoders[key]

    def _video_path(self, key: str) -> Path:
        return self.scratch / f"{key}.mp4"


def checked_text(key: str, value: object) -> str:
    """Return a text that a table can hold.

    Raises:
        ValueError: It is no string, or has no UTF-8 form.
    """
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} must have a UTF-8 form, got {value!r:.80}") from error
    return value


def checked_value(key: str, value: Any, feature: Feature) -> Any:  # noqa: ANN401  # a frame may hold anything
    """Return a frame's value in the type it is stored in; numbers are rounded to it, as to float32, but never changed.

    Raises:
        ValueError: The value does not fit the feature, is not finite, or is outside what the feature's type can hold.
    """
    if feature.dtype == "string":
        return checked_text(key, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key} must be an array of shape {feature.shape}, got {value!r:.80} ({error})") from error
    if feature.is_visual:
        if array.dtype != np.uint8 or array.shape != feature.shape:
            raise ValueError(f"{key} must be uint8 of shape {feature.shape}, got {array.dtype} of {array.shape}")
        return array
    if array.shape != feature.shape and not (feature.shape == (1,) and array.shape == ()):
        raise ValueError(f"{key} must have shape {feature.shape}, got {array.shape}")
    kind = np.dtype(feature.dtype)
    if array.dtype.kind not in "biuf" or (kind.kind in "iu" and array.dtype.kind == "f"):
        raise ValueError(f"{key} must be {feature.dtype}, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{key} must be finite, got {array.reshape(-1).tolist()!r:.80}")
    try:
        return converted(array, feature.dtype)
    except OverflowError as error:
        raise ValueError(f"{key} must fit {feature.dtype}, which cannot hold {error}") from error
