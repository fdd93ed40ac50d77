"""Recorded episodes as the model learns from them: the library's dataset, cached latents and collator."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from robot import ROBOT, text_tokenizer, transform
from torch import Tensor

from moteur.data import BoundedCache, LatentCache, RobotDataset
from moteur.recipes import Collator, InternVLAA1, Processor, TrainingBatch

OPEN_VIDEOS = 600  # one for each camera of each episode of the demo


class Demonstrations:
    """The moments of a set, one a frame.

    Args:
        root: Folder of the set.
        model: Whose sizes and statistics the samples fit.
        episodes: Numbers of the episodes to use.

    Attributes:
        dataset: Samples with pictures of t-15, t and t+15.
        latents: Samples with cached latents of t-15, t and t+15 and the picture of t, once they are encoded.
        collate: Makes a batch of such samples.
    """

    def __init__(self, root: Path, model: InternVLAA1, *, episodes: Sequence[int]) -> None:
        self.ahead = model.config.history
        reading = {"episodes": list(episodes), "videos": BoundedCache(OPEN_VIDEOS)}
        self._opened = partial(RobotDataset, root, transform(model), **reading)
        self.dataset = self._opened()
        # The past of an episode's first frames is the first frame, here as in acting: they are learned from.
        self.collate = Collator(Processor(model.config, text_tokenizer()), repeated_history=True)
        self.latents: RobotDataset | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def encode(self, model: InternVLAA1, folder: Path, *, progress: bool = True) -> None:
        """Have this model's image tokenizer encode every frame, once; half precision spares disk."""
        assert model.foresight is not None
        cache = LatentCache(
            folder,
            self.dataset.source.root,
            self.dataset.transform,
            encode=model.foresight.encode,
            digest=model.foresight.digest(),
            dtype=torch.float16,
            episodes=self.dataset.source.episodes,
            progress=progress,
        )
        cache.write(batch_size=64)
        self.latents = self._opened(latents=cache)

    def batch(self, index: Int[Tensor, " batch"]) -> TrainingBatch:
        """What the model sees at these moments, and what it should learn. The latents must be there."""
        assert self.latents is not None
        return self.collate([self.latents[position] for position in index.tolist()])

    def pair(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "time batch view 3 height width"]:
        """Pictures of t and t+15 at these moments, in [0, 1]."""
        frames = torch.stack([self.dataset[position].frames[:, 1:] for position in index.tolist()])
        return frames.movedim(2, 0).float() / 255

    def instructions(self, index: Int[Tensor, " batch"]) -> list[str]:
        """What the arm was told at these moments."""
        return [str(self.dataset.source[position]["task"]) for position in index.tolist()]

    def poses(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch 4"]:
        """The gripper's measured pose at these moments, as recorded."""
        source = self.dataset.source
        places = [source.locate(position) for position in index.tolist()]
        rows = [source.column("observation.state", episode)[frame] for episode, frame in places]
        return torch.from_numpy(np.stack(rows))

    def pictures(self, index: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch 3 height width"]:
        """Single pictures: number `frame * views + view`."""
        source, views = self.dataset.source, len(ROBOT.cameras)
        found: list[Tensor] = []
        for number in index.tolist():
            episode, frame = source.locate(number // views)
            found.append(source.frames_at(ROBOT.cameras[number % views] or "", episode, [frame])[0])
        return torch.stack(found)

    def moments(self, every: int) -> Int[Tensor, " moment"]:
        """Moments whose future is still inside their episode, every third for `every=3`."""
        source = self.dataset.source
        lengths = source.index.length[source.episodes].tolist()
        starts = torch.tensor([0, *lengths]).cumsum(0)
        parts = [
            torch.arange(start, start + length - self.ahead, every)
            for start, length in zip(starts.tolist(), lengths, strict=False)
        ]
        return torch.cat(parts)
