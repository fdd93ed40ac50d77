"""Which frames and actions belong to one sample, and what an episode's samples look like to the statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import frame_offsets
from moteur.data.robot import Robot, Source

_TIMES = 3


@dataclass(frozen=True)
class Window:
    """History, present and future frames, and the action chunk.

    Attributes:
        frames: Frame offsets of history (negative), present (0) and future (positive), or the present's alone: `(0,)`.
        seconds: The same in seconds, instead of `frames`, for one horizon over robots of different rates.
        steps: Length of the action chunk; step 0 is the action of the present frame.

    Raises:
        ValueError: The chunk is empty, or the times are others than these.
    """

    frames: tuple[int, ...] = (-15, 0, 15)
    seconds: tuple[float, ...] | None = None
    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        name, times = ("frames", self.frames) if self.seconds is None else ("seconds", self.seconds)
        if times != (0,) and not (len(times) == _TIMES and times[0] < times[1] == 0 < times[2]):
            raise ValueError(f"{name}: expected a time before 0, 0 and a time after it, or (0,) alone, got {times}")

    def frame_offsets(self, fps: int) -> tuple[int, ...]:
        """Return the offsets in whole frames for a set of this rate."""
        return self.frames if self.seconds is None else frame_offsets(self.seconds, fps)


def joined(columns: Iterator[np.ndarray] | list[np.ndarray], rows: int) -> Float64[np.ndarray, "row dim"]:
    """Concatenate columns along their entries, in float64; scalars count as one entry."""
    parts = [column.reshape(rows, -1).astype(np.float64) for column in columns]
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0))


def episode_rows(
    dataset: LeRobotSet, robot: Robot, episode: int, *, steps: int
) -> tuple[Float64[np.ndarray, "frame state"], Float64[np.ndarray, "row action"]]:
    """Every state of an episode, and every real step of every action chunk, relative where the schema says so.

    The rows are the supervised ones: chunks reach past the end of the episode, and those steps are left out; an episode
    shorter than a chunk contributes all it has.

    Args:
        dataset: The set.
        robot: Its schema.
        episode: Number of the episode.
        steps: Length of the chunks.

    Returns:
        States by frame, and action rows ordered by step within the chunk.
    """

    def column(source: Source) -> np.ndarray:
        values = dataset.column(source.key, episode)
        return values.reshape(len(values), -1)[:, source.start : source.start + source.size]

    length = int(dataset.index.length[episode])
    state = joined([column(source) for source in robot.state], length)
    action = joined([column(source) for source in robot.action], length)
    reference = np.zeros_like(action)
    mask = np.array(robot.relative_mask, dtype=bool)
    reference[:, mask] = state[:, np.flatnonzero(mask)]
    chunks = [action[step:] - reference[: length - step] for step in range(min(steps, length))]
    return state, np.concatenate(chunks)
