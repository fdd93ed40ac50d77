"""Latents of a set's frames, written once and read instead of encoded."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from moteur.data import RobotDataset
from moteur.data.latents.decoding import decoders, expect_pixels
from moteur.data.latents.keys import settings
from moteur.data.latents.probe import expect_same, probe
from moteur.data.latents.shards import Shard, plan_shards
from moteur.data.lerobot import BoundedCache, LeRobotSet
from moteur.data.lerobot.video import Backend
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight

_OPEN_SHARDS = 64


class LatentCache:
    """The cached latents of one set under one tokenizer, in a folder that may hold those of any number of others.

    A shard's name is the digest of the bytes of the files that hold the pictures and where in them the frames are, the
    names and versions of what decodes them, how frames are prepared, the tokenizer's weights and sizes, and the stored
    dtype. What was made from anything else has another name and is not found. Naming reads every such file once, when a
    cache is opened.

    Code, builds and processors are not part of a name. Each shard therefore holds the latents of a fixed picture, and
    what the pixels of one frame of each camera were; `verify` compares both with this process's own.

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
        self.backend: Backend | None = dataset.source.backend
        self.frames = {"size": dataset.transform.size, "images": dataset.transform.images}
        self.computed_in = foresight.encoder.quant_conv.weight.dtype
        self.dtype = dtype or self.computed_in
        self.cameras = tuple(dict.fromkeys(camera for camera in dataset.transform.robot.cameras if camera))
        self.probe = probe(foresight, dataset.transform, self.dtype)
        made_with = settings(foresight, config, dataset.transform, self.dtype)
        self.decoders = made_with["decoders"] = decoders(dataset.source, self.cameras)
        self.shards = plan_shards(dataset.source, self.cameras, made_with, progress=progress)
        self._progress = progress
        self._place = {episode: (shard, place) for shard in self.shards for place, episode in enumerate(shard.episodes)}
        self._open = BoundedCache(_OPEN_SHARDS)

    @property
    def missing(self) -> list[Shard]:
        """Shards that are not there."""
        return [shard for shard in self.shards if not self.path(shard).is_file()]

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard.key}.safetensors"

    def pictures(self) -> LeRobotSet:
        """Open the whole set without windows, pictures alone."""
        return LeRobotSet(self.root, keys=self.cameras, backend=self.backend)

    def expect(self, dataset: RobotDataset) -> None:
        """Refuse a dataset whose frames are not those that were encoded here.

        Raises:
            ValueError: It is of another folder, decoded or prepared otherwise, or has cameras or episodes that are not
                here; what differs is named.
        """
        source, preparation = dataset.source, dataset.transform
        frames = {"size": preparation.size, "images": preparation.images}
        _expect("root", source.root.resolve(), self.root.resolve())
        _expect("frames", frames, self.frames)
        cameras = {camera for camera in preparation.robot.cameras if camera}
        _expect("cameras", sorted(cameras), sorted(cameras.intersection(self.cameras)))
        _expect("decoders", decoders(source, self.cameras), self.decoders)
        _expect("episodes", source.episodes, [number for number in source.episodes if number in self._place])

    def verify(self) -> None:
        """Make sure that every shard is there, whole, and computed from the pixels and as it would be computed now.

        Raises:
            FileNotFoundError: Shards are missing: never written, or the pictures, the software that decodes them, their
                preparation, the tokenizer or the dtype changed since.
            ValueError: A shard is damaged, was computed by code that gives something else, or from other pixels than
                this machine decodes; or a file with pictures changed since the cache was opened.
        """
        missing = self.missing
        if missing:
            episodes = [number for shard in missing for number in shard.episodes]
            raise FileNotFoundError(
                f"{self.folder}: no latents of {len(episodes)} episodes of {self.root} (the first is {episodes[0]}) "
                "made with these pictures, decoders, this preparation, tokenizer and dtype; write them with "
                "write_latents"
            )
        pictures = self.pictures()
        for shard in tqdm(self.shards, desc="checking latents", unit="shard", disable=not self._progress):
            shard.expect_unchanged()
            path, file = self.path(shard), self._shard(shard)
            expect_same(path, file.get_tensor("probe"), self.probe, self.computed_in)
            expect_pixels(path, json.loads(file.metadata()["pixels"]), pictures, shard)
        pictures.close()

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


def _expect(what: str, expected: object, found: object) -> None:
    if found != expected:
        raise ValueError(
            f"cache: expected latents of the dataset's {what} {expected!s:.300}, got those of {found!s:.300}"
        )


def _opened(path: Path) -> Any:  # noqa: ANN401 - safetensors ships no types
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; write the latents with write_latents")
    try:
        return safe_open(os.fspath(path), "pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and write the latents again") from error
