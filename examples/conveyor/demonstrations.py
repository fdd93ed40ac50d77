"""Recorded episodes as the model learns from them: through the reader, the preparation and the cached latents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from moteur.recipes.latent_batches import latent_targets
from robot import ROBOT, Policy, preparation
from torch import Tensor
from torch.utils.data import default_collate

from moteur.data import BoundedCache, LatentDataset, RobotDataset, write_latents
from moteur.recipes import Inputs, Targets

OPEN_VIDEOS = 600  # one for each camera of each episode of the demo


class Demonstrations:
    """The moments of a set, one a frame.

    Args:
        root: Folder of the set.
        policy: Whose door and statistics the samples go through.
        episodes: Episodes to use.
        future: Give the pictures of t+15 as well, to compare predictions with them.
    """

    def __init__(self, root: Path, policy: Policy, *, episodes: Sequence[int], future: bool = False) -> None:
        self.door = policy.door
        self.ahead, self.future = policy.door.config.history, future
        self.dataset = RobotDataset(
            root,
            preparation(policy.statistics, frames=(-self.ahead, 0, self.ahead)),
            episodes=list(episodes),
            videos=BoundedCache(OPEN_VIDEOS),
        )
        self.latents: LatentDataset | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def encode(self, policy: Policy, folder: Path, *, progress: bool = True) -> None:
        """Have this policy's tokenizer encode every frame, once; half precision spares disk."""
        foresight = policy.model.foresight
        assert foresight is not None
        cache = write_latents(
            folder,
            self.dataset,
            encode=foresight.encode,
            digest=foresight.digest(),
            dtype=torch.float16,
            batch_size=64,
            progress=progress,
        )
        self.latents = LatentDataset(self.dataset, cache)

    def batch(self, index: Int[Tensor, " batch"]) -> dict[str, Any]:
        """Prepared samples of these moments, stacked. The latents must be there."""
        assert self.latents is not None
        samples = [self.latents[position] for position in index.tolist()]
        if self.future:  # beside latents come the pixels of the present alone
            for sample, position in zip(samples, index.tolist(), strict=True):
                sample["images"] = self.dataset[position]["images"][:, 1:]
        return default_collate(samples)

    def samples(self, index: Int[Tensor, " batch"]) -> tuple[Inputs, Targets]:
        """What the policy sees at these moments, and what it should learn."""
        return self.split(self.batch(index))

    def split(self, batch: dict[str, Any]) -> tuple[Inputs, Targets]:
        """The same of a batch that was read before."""
        words = torch.tensor([self.door.number(text) for text in batch["task"]])
        latents = batch["latents"].float()
        inputs = self.door.inputs(batch["images"][:, :, 0], batch["state"], words, latents=latents[:, :, :2])
        # The past of an episode's first frames is the first frame, here as in acting: they are learned from.
        return inputs, replace(latent_targets(batch, repeated_history=True), future_latents=latents[:, :, 2])

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
            found.append(source.frames(ROBOT.cameras[number % views] or "", episode, [frame])[0])
        return torch.stack(found)

    def moments(self, every: int) -> Int[Tensor, " moment"]:
        """Every so manyth moment whose future is still inside its episode."""
        source = self.dataset.source
        lengths = source.index.length[source.episodes].tolist()
        starts = torch.tensor([0, *lengths]).cumsum(0)
        parts = [
            torch.arange(start, start + length - self.ahead, every)
            for start, length in zip(starts.tolist(), lengths, strict=False)
        ]
        return torch.cat(parts)
