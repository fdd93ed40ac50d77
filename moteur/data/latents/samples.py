"""Prepared samples with cached latents in the place of frames, and what the recipe takes of them."""

from dataclasses import replace

import numpy as np
import torch

from moteur.data import RobotDataset, Sample
from moteur.data.latents.cache import LatentCache
from moteur.recipes.batches import masked_targets
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.processing import Observation, Processor

_TIMES = ("a time of history", "the present 0", "a time of the future")


class LatentDataset:
    """Samples of a `RobotDataset` with cached latents in the place of frames: a map-style dataset.

    Its window says which times the latents are of, in frames or in seconds. Of the pixels only the present is read, for
    the vision tower. A sample is what the dataset gives, but for

    | key | type | |
    |---|---|---|
    | `frames` | (view, 1, ...) | the present alone |
    | `latents` | (view, 2, channel, rows, columns) | clamped to the episode; zeros for a missing camera |
    | `future_latents` | (view, channel, rows, columns) | the same |

    Args:
        dataset: Prepared samples; their window holds history, the present and the future.
        cache: Their latents; verified here, so that nothing goes missing in the middle of a run.

    Raises:
        FileNotFoundError: Latents are missing.
        ValueError: Latents are damaged, not what this code computes, or of other frames than the dataset's; or the
            window has other times.
    """

    def __init__(self, dataset: RobotDataset, cache: LatentCache) -> None:
        window = dataset.transform.window
        times = window.frame_offsets(dataset.source.info.fps)
        if len(times) != len(_TIMES):
            raise ValueError(f"dataset.transform.window: expected {', '.join(_TIMES)}, got frames {times} ({window})")
        cache.expect(dataset)
        cache.verify()
        self.transform, self.cache = dataset.transform, cache
        self._present = dataset.of_the_present()
        self._times = np.array(times)
        self._shape = tuple(cache.probe.shape)

    def __len__(self) -> int:
        return len(self._present)

    def __getitem__(self, position: int) -> Sample:
        source, cameras = self._present.source, self.transform.robot.cameras
        episode, frame = source.locate(position)
        wanted = np.clip(frame + self._times, 0, int(source.index.length[episode]) - 1)
        latents = torch.zeros(len(cameras), len(wanted), *self._shape, dtype=self.cache.dtype)
        for view, camera in enumerate(cameras):
            if camera is not None:
                latents[view] = self.cache.read(camera, episode, wanted.tolist())
        present = torch.tensor([camera is not None for camera in cameras])
        inside = torch.from_numpy(wanted == frame + self._times)
        return replace(
            self._present[position],
            frame_valid=present[:, None] & inside,
            latents=latents[:, :2],
            future_latents=latents[:, 2],
        )


def latent_inputs(batch: Sample, processor: Processor) -> Inputs:
    """The policy's side of a batch of `LatentDataset`: pixels of the present, latents of t-15 and t.

    Args:
        batch: Samples as `torch.utils.data.default_collate` stacks them; robots may be mixed.
        processor: Makes patches and token ids.
    """
    images = batch.frames[:, :, :1]
    frames = [images[:, view].expand(-1, 2, -1, -1, -1) for view in range(images.shape[1])]
    inputs = processor(Observation(frames, batch.state, list(batch.instruction), batch.view_valid))
    return replace(inputs, frames=None, latents=batch.latents)


def latent_targets(batch: Sample, *, repeated_history: bool = False) -> Targets:
    """The teacher's side of such a batch: actions with their masks, latents of t+15.

    Args:
        batch: As for `latent_inputs`.
        repeated_history: As in `targets_of`.
    """
    targets = masked_targets(batch, repeated_history=repeated_history)
    return replace(targets, future_latents=batch.future_latents)
