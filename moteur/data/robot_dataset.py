"""Samples of a LeRobot set, for training."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import INFO_FILE, read_info
from moteur.data.lerobot.open_files import BoundedCache
from moteur.data.lerobot.video import Backend
from moteur.data.samples import RobotTransform, Sample


class RobotDataset:
    """Samples of one set: a map-style dataset.

    Args:
        root: Folder of the set; its `info.json` is checked against the robot's schema.
        transform: How to make samples.
        episodes: Numbers of the episodes to use, in this order. Default: all.
        backend: As for `LeRobotSet`, and so are `videos` and `tables`.

    Raises:
        FileNotFoundError: A file of the set is missing.
        ValueError: The set is damaged, or does not fit the robot.
    """

    def __init__(
        self,
        root: Path | str,
        transform: RobotTransform,
        *,
        episodes: Sequence[int] | None = None,
        backend: Backend | None = None,
        videos: BoundedCache | None = None,
        tables: BoundedCache | None = None,
    ) -> None:
        info, robot, window = read_info(Path(root)), transform.robot, transform.window
        robot.check(info, Path(root))
        try:
            times = window.frame_offsets(info.fps)
        except ValueError as error:
            raise ValueError(f"{Path(root) / INFO_FILE} does not fit the window: {error}") from error
        offsets = {camera: times for camera in robot.cameras if camera}
        offsets |= {source.key: tuple(range(window.chunk)) for source in robot.action}
        self.transform = transform
        self._reading: dict[str, Any] = {"episodes": episodes, "backend": backend, "videos": videos, "tables": tables}
        self.source = LeRobotSet(root, offsets=offsets, keys=robot.keys, **self._reading)

    def __repr__(self) -> str:
        return (
            f"RobotDataset({str(self.source.root)!r}, robot {self.transform.robot.name!r}, {len(self):,} samples of "
            f"{len(self.source.episodes):,} episodes)"
        )

    def of_the_present(self) -> "RobotDataset":
        """The same samples with the frame of the present alone, through the same caches of open files."""
        transform = copy(self.transform)
        transform.window = replace(transform.window, offsets=(0,), seconds=None)
        return RobotDataset(self.source.root, transform, **self._reading)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Sample:
        item = self.source[position]
        try:
            return self.transform(item)
        except ValueError as error:
            episode, frame = self.source.locate(position)
            raise ValueError(f"{self.source.root}, episode {episode}, frame {frame}: {error}") from error
