"""Statistics of columns, in the form that LeRobot stores beside each episode and in `meta/stats.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Summary = dict[str, Any]


def summarise_numbers(values: Shaped[np.ndarray, " frame *shape"]) -> Summary:
    """Mean, standard deviation, extremes, count and quantiles over frames, in float64.

    The results are lists in the shape of one frame's value, with one entry for scalars; `std` divides by the count.
    """
    rows = values.reshape(len(values), -1) if values.ndim == 1 else values
    wide = rows.astype(np.float64)
    integers = np.can_cast(rows.dtype, np.int64) and rows.dtype.kind != "b"  # Arrow infers no uint64 here
    points = np.quantile(wide, list(QUANTILES.values()), axis=0)  # interpolated linearly
    return {
        "min": (rows if integers else wide).min(axis=0).tolist(),
        "max": (rows if integers else wide).max(axis=0).tolist(),
        "mean": wide.mean(axis=0).tolist(),
        "std": wide.std(axis=0).tolist(),
        "count": [len(rows)],
        **{name: point.tolist() for name, point in zip(QUANTILES, points, strict=True)},
    }


class PictureHistogram:
    """Histogram of the byte values per colour channel, from which all statistics of pictures follow exactly.

    LeRobot looks at a sample of the frames, scaled down; here every pixel of every frame counts.
    """

    def __init__(self) -> None:
        self.counts: Int64[np.ndarray, "channel value"] = np.zeros((3, 256), dtype=np.int64)
        self.num_frames = 0

    def add(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Count the pixels of one picture."""
        for channel in range(3):
            self.counts[channel] += np.bincount(picture[..., channel].reshape(-1), minlength=256)
        self.num_frames += 1

    def merge(self, other: "PictureHistogram") -> None:
        """Add another histogram's counts."""
        self.counts = self.counts + other.counts
        self.num_frames += other.num_frames

    def summarise(self) -> Summary:
        """Statistics of values in [0, 1], in LeRobot's (channel, 1, 1) shape; `count` is in frames."""
        levels = np.arange(256) / 255.0
        total = self.counts.sum(axis=1, keepdims=True)
        mean = (self.counts * levels).sum(axis=1, keepdims=True) / total
        variance = (self.counts * (levels - mean) ** 2).sum(axis=1, keepdims=True) / total
        fractions = {"min": 0.0, "max": 1.0} | QUANTILES
        points: list[np.ndarray] = []
        for counts, there in zip(self.counts, self.counts > 0, strict=True):
            last = np.cumsum(counts) - 1  # the rank of the last pixel of each level
            ranks = np.stack([last - counts + 1, last], axis=1)[there].reshape(-1)
            wanted = np.array(list(fractions.values())) * last[-1]
            points.append(np.interp(wanted, ranks, np.repeat(levels[there], 2)))
        summary = dict(zip(fractions, np.transpose(points), strict=True))
        summary |= {"mean": mean[:, 0], "std": np.sqrt(variance[:, 0])}
        nested = {name: values[:, None, None].tolist() for name, values in summary.items()}
        return nested | {"count": [self.num_frames]}


def merge_summaries(summaries: Sequence[Mapping[str, Any]]) -> Summary:
    """Combine the statistics of disjoint sets of frames; quantiles do not combine and are left out."""
    counts = np.array([summary["count"][0] for summary in summaries], dtype=np.float64)
    means, stds = (np.array([summary[name] for summary in summaries], dtype=np.float64) for name in ("mean", "std"))
    weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
    mean = (weights * means).sum(axis=0)
    variance = (weights * (stds**2 + (means - mean) ** 2)).sum(axis=0)
    return {
        "min": np.min([summary["min"] for summary in summaries], axis=0).tolist(),
        "max": np.max([summary["max"] for summary in summaries], axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "count": [int(counts.sum())],
    }
