"""Latents of a set's frames, written once and read instead of encoded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight
from moteur.recipes.latents.keys import settings
from moteur.recipes.latents.probe import probe, same_computation
from moteur.recipes.latents.shards import Shard, plan_shards
from moteur.recipes.lerobot import BoundedCache
from moteur.recipes.robots import RobotDataset

_OPEN_SHARDS = 64


class LatentCache:
    """The cached latents of one set under one tokenizer, in a folder that may hold those of any number of others.

    A shard's name is the digest of all that its latents depend on: the bytes of the files that hold the pictures and
    where in them the frames are, how frames are prepared, the tokenizer's weights and sizes, and the stored dtype. What
    was made from anything else has another name and is not found: latents cannot be stale. Naming reads every such
    file once, when a cache is opened.

    Code is not part of a name. Each shard therefore holds the latents of a fixed picture, which `verify` compares with
    this process's own.

    Args:
        folder: Where the shards are.
        dataset: The prepared set; only its pictures play a part.
        foresight: Holds the frozen tokenizer, which is looked at here and not kept.
        config: What it was built from.
        dtype: What latents are stored in; by default what the tokenizer computes in, so that nothing is rounded.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: A file with pictures is missing.
        ValueError: The dataset's frames are not of the model's size.
    """

    def __init__(
        self,
        folder: Path | str,
        dataset: RobotDataset,
        foresight: Foresight,
        config: InternVLAA1Config,
        *,
        dtype: torch.dtype | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.root = dataset.source.root
        self.computed_in = foresight.encoder.quant_conv.weight.dtype
        self.dtype = dtype or self.computed_in
        self.cameras = tuple(dict.fromkeys(camera for camera in dataset.preparation.robot.cameras if camera))
        self.probe = probe(foresight, dataset.preparation, self.dtype)
        made_with = settings(foresight, config, dataset.preparation, self.dtype)
        self.shards = plan_shards(dataset.source, self.cameras, made_with, progress=progress)
        self._place = {episode: (shard, place) for shard in self.shards for place, episode in enumerate(shard.episodes)}
        self._open = BoundedCache(_OPEN_SHARDS)

    @property
    def missing(self) -> list[Shard]:
        """Shards that are not there."""
        return [shard for shard in self.shards if not self.path(shard).is_file()]

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard.key}.safetensors"

    def verify(self) -> None:
        """Make sure that every shard is there, whole, and computed as it would be computed now.

        Raises:
            FileNotFoundError: Shards are missing: never written, or the pictures, their preparation, the tokenizer or
                the dtype changed since.
            ValueError: A shard is damaged, or was computed by code that gives something else.
        """
        missing = self.missing
        if missing:
            episodes = [number for shard in missing for number in shard.episodes]
            raise FileNotFoundError(
                f"{self.folder}: no latents of {len(episodes)} episodes of {self.root} (the first is {episodes[0]}) "
                "made with these pictures, this preparation, tokenizer and dtype; write them with write_latents"
            )
        for shard in self.shards:
            if not same_computation(self._shard(shard).get_tensor("probe"), self.probe, self.computed_in):
                raise ValueError(
                    f"{self.path(shard)}: its probe differs by more than rounding from what this code computes; write "
                    "the latents again, into another folder"
                )

    def read(self, camera: str, episode: int, frames: Sequence[int]) -> Float[Tensor, "frame channel rows columns"]:
        """Latents of one camera's frames, by their numbers within the episode.

        Raises:
            FileNotFoundError: The shard is missing.
            ValueError: The shard is damaged.
        """
        shard, place = self._place[episode]
        stored = self._shard(shard).get_slice(f"{place}/{camera}")
        return torch.cat([stored[number : number + 1] for number in frames])

    def _shard(self, shard: Shard) -> Any:  # noqa: ANN401 - safetensors ships no types
        return self._open.get(shard.key, lambda: _opened(self.path(shard)))


def _opened(path: Path) -> Any:  # noqa: ANN401 - safetensors ships no types
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; write the latents with write_latents")
    try:
        return safe_open(os.fspath(path), "pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and write the latents again") from error
