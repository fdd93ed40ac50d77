"""Buffer of the episode being recorded: checks each frame, encodes its pictures at once, counts its statistics."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moteur.data.lerobot.encode import VideoWriter
from moteur.data.lerobot.info import Feature
from moteur.data.lerobot.stats import PictureHistogram, Summary, summarise_numbers
from moteur.data.lerobot.table import cast_exactly, png_bytes


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
