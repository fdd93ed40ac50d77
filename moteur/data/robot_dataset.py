"""Samples of a LeRobot set, for training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moteur.data.latents import LatentCache
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.lerobot.info import INFO_FILE, Info
from moteur.data.lerobot.open_files import BoundedCache
from moteur.data.lerobot.video import Backend
from moteur.data.samples import RobotTransform, Sample


class RobotDataset:
    """Samples of one set: a map-style dataset.

    With cached latents, `frames` of a sample holds the present alone, for the vision tower, and `latents` and
    `future_latents` are set: clamped to the episode, zeros for a missing camera. `frame_valid` is that of all times, as
    for frames.

    Args:
        root: Folder of the set; its `info.json` is checked against the robot's schema.
        transform: How to make samples.
        episodes: Numbers of the episodes to use, in this order. Default: all.
        backend: As for `LeRobotSet`, and so are `videos` and `tables`.
        latents: Latents of this set, to be read instead of frames. They are verified here (see `LatentCache.verify`),
            so that a run does not stop in its middle.

    Raises:
        FileNotFoundError: A file of the set or of the latents is missing.
        ValueError: The set is damaged, or does not fit the robot; or the latents are damaged or of something else, or
            the window is not one of history, present and future, which latents need.
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
        latents: LatentCache | None = None,
    ) -> None:
        info, robot, window = Info.load(root), transform.robot, transform.window
        robot.check(info, Path(root))
        try:
            times = window.frame_offsets(info.fps)
        except ValueError as error:
            raise ValueError(f"{Path(root) / INFO_FILE} does not fit the window: {error}") from error
        offsets = {camera: times if latents is None else (0,) for camera in robot.cameras if camera}
        offsets |= {source.key: tuple(range(window.chunk)) for source in robot.action}
        self.source = LeRobotSet(
            root, offsets=offsets, keys=robot.keys, episodes=episodes, backend=backend, videos=videos, tables=tables
        )
        self.transform, self.latents = transform, latents
        self._times = np.array(times)
        if latents is not None:
            if window.num_times == 1:
                raise ValueError(f"latents: expected a window of history, present and future, got {window}")
            latents.check(self.source, transform)
            latents.verify()

    def __repr__(self) -> str:
        latents = (
            "" if self.latents is None else f", latents at offsets {tuple(self._times.tolist())}, {self.latents!r}"
        )
        return (
            f"RobotDataset({str(self.source.root)!r}, robot {self.transform.robot.name!r}, {len(self):,} samples of "
            f"{len(self.source.episodes):,} episodes{latents})"
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int) -> Sample:
        item = self.source[position]
        episode, frame = self.source.locate(position)
        try:
            sample = self.transform(item)
        except ValueError as error:
            raise ValueError(f"{self.source.root}, episode {episode}, frame {frame}: {error}") from error
        return sample if self.latents is None else self._with_latents(sample, self.latents, episode, frame)

    def _with_latents(self, sample: Sample, cache: LatentCache, episode: int, frame: int) -> Sample:
        cameras, last = self.transform.robot.cameras, int(self.source.index.length[episode]) - 1
        wanted = np.clip(frame + self._times, 0, last)
        latents = torch.zeros(len(cameras), len(wanted), *cache.probe.shape, dtype=cache.dtype)
        for view, camera in enumerate(cameras):
            if camera is not None:
                latents[view] = cache.read(camera, episode, wanted.tolist())
        inside = torch.from_numpy(wanted == frame + self._times)
        frame_valid = sample.view_valid[:, None] & inside
        return replace(sample, frame_valid=frame_valid, latents=latents[:, :2], future_latents=latents[:, 2])
