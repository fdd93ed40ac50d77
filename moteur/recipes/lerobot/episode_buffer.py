"""The episode being recorded: checked frames, encoded as they come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moteur.recipes.lerobot.columns import png_bytes
from moteur.recipes.lerobot.encode import VideoWriter
from moteur.recipes.lerobot.info import Feature
from moteur.recipes.lerobot.summary import PictureHistogram, Summary, summarise_numbers


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

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, frame: Mapping[str, Any], task: str) -> None:
        """Add one frame.

        Raises:
            ValueError: A feature is missing, unknown, of another shape or type, or not finite; the key is named.
        """
        if set(frame) != set(self.features):
            missing, extra = sorted(set(self.features) - set(frame)), sorted(set(frame) - set(self.features))
            raise ValueError(f"frame must hold exactly the set's features; missing {missing}, unknown {extra}")
        # Every value is checked before any is kept: a rejected frame leaves no trace.
        values = {key: checked_value(key, frame[key], entry) for key, entry in self.features.items()}
        for key, value in values.items():
            if self.features[key].is_visual:
                self.histograms[key].add(value)
            if self.features[key].dtype == "video":
                self._encoder(key).add(value)
            else:
                self.columns[key].append(png_bytes(value) if self.features[key].dtype == "image" else value)
        self.tasks.append(task)

    def close(self) -> Mapping[str, Path]:
        """Finish the videos and return their files."""
        for encoder in self._encoders.values():
            encoder.close()
        return {key: self._video_path(key) for key in self._encoders}

    def summaries(self) -> dict[str, Summary]:
        """Statistics of every column that has any."""
        pictures = {key: histogram.summarise() for key, histogram in self.histograms.items()}
        numbers = {
            key: summarise_numbers(np.stack(self.columns[key]).reshape(len(self), *entry.shape))
            for key, entry in self.features.items()
            if entry.is_numeric
        }
        return pictures | numbers

    def _encoder(self, key: str) -> VideoWriter:
        if key not in self._encoders:
            height, width, _ = self.features[key].shape
            self._encoders[key] = VideoWriter(
                self._video_path(key), fps=self.fps, height=height, width=width, codec=self.codec, gop=self.gop
            )
        return self._encoders[key]

    def _video_path(self, key: str) -> Path:
        return self.scratch / f"{key}.mp4"


def checked_value(key: str, value: Any, feature: Feature) -> Any:  # noqa: ANN401  # a frame may hold anything
    """Return a frame's value in the type it is stored in.

    Raises:
        ValueError: The value does not fit the feature, or is not finite.
    """
    if feature.dtype == "string":
        if not isinstance(value, str):
            raise ValueError(f"{key} must be a string, got {type(value).__name__}")
        return value
    array = np.asarray(value)
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
    return array.astype(kind)
