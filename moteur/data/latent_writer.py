"""Writing cached latents: encode every frame of a set once, file by file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from moteur.data.images import as_unit_floats
from moteur.data.latents import Encode, LatentCache, Shard, pixel_digests
from moteur.data.lerobot.dataset import LeRobotSet
from moteur.data.robot_dataset import RobotDataset
from moteur.data.samples import RobotTransform


def write_latents(
    folder: Path | str,
    dataset: RobotDataset,
    *,
    encode: Encode,
    digest: str,
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> LatentCache:
    """Encode the frames of a set whose latents are not in the folder yet.

    Each file is written under a temporary name and renamed, so that an interrupted run leaves complete files and at
    most one that ends in `.part`, which nothing reads; the next run continues after them. Files are not flushed to the
    disk one by one: a power failure can lose more.

    Args:
        folder: Folder for the files; may hold latents of other sets and tokenizers.
        dataset: The set and its transform of pictures. All frames of its episodes are encoded, and of the episodes that
            share a file with them.
        encode: The tokenizer: float frames in [0, 1] on the CPU, (n, 3, size, size), to latents, (n, channel, rows,
            columns), on any device. For InternVLA-A1: `model.foresight.encode`.
        digest: Digest of the tokenizer: of its weights and of everything else its latents depend on. For InternVLA-A1:
            `model.foresight.digest()`.
        dtype: Dtype of the stored latents. Default: that of `encode`'s results, which are then not rounded.
        batch_size: Frames of each camera to encode at once.
        rank: Part of the work to do, from 0, when several processes share it.
        ranks: Number of processes that share the work.
        progress: Show a progress bar.

    Returns:
        The cache; complete if there is one rank.

    Raises:
        FileNotFoundError: A file of the set is missing.
        ValueError: The set is damaged or changes meanwhile, or `rank` is not below `ranks`.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank: expected a number in [0, {ranks}), got {rank}")
    cache = LatentCache(folder, dataset, encode=encode, digest=digest, dtype=dtype, progress=progress)
    cache.folder.mkdir(parents=True, exist_ok=True)
    pictures = cache.pictures()
    todo = [shard for shard in cache.shards[rank::ranks] if not cache.path(shard).is_file()]
    count = sum(int(pictures.index.length[list(shard.episodes)].sum()) for shard in todo)
    with tqdm(total=count, desc="encoding", unit="frame", disable=not progress) as bar:
        for shard in todo:
            tensors = {"probe": cache.probe}
            for place, episode in enumerate(shard.episodes):
                for camera, latents in _encoded(
                    cache,
                    pictures,
                    episode,
                    transform=dataset.transform,
                    encode=encode,
                    batch_size=batch_size,
                    bar=bar,
                ).items():
                    tensors[f"{place}/{camera}"] = latents
            seen = pixel_digests(pictures, cache.cameras, shard)
            cache.shard(pictures, shard.episodes)  # raises if pictures changed since they were named
            _save(cache, shard, tensors, seen)
    pictures.close()
    return cache


def _encoded(
    cache: LatentCache,
    pictures: LeRobotSet,
    episode: int,
    *,
    transform: RobotTransform,
    encode: Encode,
    batch_size: int,
    bar: Any,  # noqa: ANN401 - tqdm ships no types
) -> dict[str, Tensor]:
    """Latents of all frames of an episode, by camera."""
    start, length = int(pictures.index.start[episode]), int(pictures.index.length[episode])
    parts: list[Tensor] = []
    for first in range(0, length, batch_size):
        items = [pictures[start + number] for number in range(first, min(first + batch_size, length))]
        views = [transform.resize(torch.stack([item[camera] for item in items])) for camera in cache.cameras]
        frames = as_unit_floats(torch.stack(views, dim=1).flatten(0, 1))
        parts.append(encode(frames).to("cpu", cache.dtype).unflatten(0, (len(items), len(views))))
        bar.update(len(items))
    latents = torch.cat(parts)
    return {camera: latents[:, view].contiguous() for view, camera in enumerate(cache.cameras)}


def _save(cache: LatentCache, shard: Shard, tensors: dict[str, Tensor], seen: dict[str, str]) -> None:
    draft = cache.folder / f"{shard.key}.{os.getpid()}.part"
    save_file(tensors, draft, metadata={"ingredients": json.dumps(shard.ingredients), "pixels": json.dumps(seen)})
    draft.chmod(0o644)  # safetensors creates files that only their owner can read
    draft.replace(cache.path(shard))
