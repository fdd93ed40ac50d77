"""Whether a parquet file holds the rows that the episode index says it holds, no more and in that order."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moteur.data.lerobot.episodes import Episodes
from moteur.data.lerobot.table import TableFile

_NAMES = ("index", "episode_index", "frame_index")


@dataclass(frozen=True)
class ExpectedRows:
    """The rows of one file, by the lengths of the episodes that are in it.

    Attributes:
        episodes: The episode index.
        first: Index, in the whole set, of the file's first row.
        count: Number of rows.
        fps: Frames per second, to compare time stamps with frame numbers; None where no video depends on them.
    """

    episodes: Episodes
    first: int
    count: int
    fps: int | None

    def check(self, path: Path, row: int, columns: Mapping[str, np.ndarray]) -> None:
        """Compare decoded columns, the first of whose rows is `row`, with what must be there.

        Raises:
            ValueError: They differ; the file, the first such row, what it holds and what was expected are named.
        """
        index = np.arange(self.first + row, self.first + min(row + len(columns["index"]), self.count))
        episode = np.searchsorted(self.episodes.start, index, side="right") - 1
        expected = np.stack([index, episode, index - self.episodes.start[episode]])
        found = np.stack([columns[name][: len(index)] for name in _NAMES])
        wrong = np.flatnonzero((found != expected).any(axis=0))
        if wrong.size:
            place = int(wrong[0])
            raise ValueError(
                f"{path}: {', '.join(_NAMES)} are {tuple(found[:, place].tolist())}, expected "
                f"{tuple(expected[:, place].tolist())} in row {row + place} by the lengths in the episode index"
            )
        if self.fps is None:
            return
        # LeRobot finds a picture by its time, this reader by its number: half a frame apart, they would differ.
        seconds, number = columns["timestamp"][: len(index)], expected[2]
        wrong = np.flatnonzero(~(np.abs(seconds * float(self.fps) - number) < 0.5))  # noqa: PLR2004  # told above
        if wrong.size:
            place = int(wrong[0])
            raise ValueError(
                f"{path}: timestamp is {float(seconds[place]):.6g} in row {row + place}, expected "
                f"{number[place] / self.fps:.6g} for frame {number[place]} at {self.fps} frames per second"
            )

    def check_surplus(self, file: TableFile, *, allowed: bool) -> None:
        """Refuse further rows, but for those of an episode whose recording was cut off, where they are `allowed`.

        Raises:
            ValueError: There are rows that the episode index does not count; file, field and both counts are named.
        """
        later = np.arange(self.count, file.row_count)
        if later.size and allowed:
            allowed = bool((file.numbers("episode_index", later) >= len(self.episodes)).all())
        if later.size and not allowed:
            raise ValueError(f"{file.path}: holds {file.row_count} rows, length in the episode index says {self.count}")
