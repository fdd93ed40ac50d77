"""Encoding a set's frames once, shard by shard: one function, and one command.

python -m moteur.data.latents --cosmos ENCODER --preset 3B --robot franka --out FOLDER SET [SET ...]
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from moteur.data import ROBOTS, FieldStatistics, Robot, RobotDataset, RobotStatistics, RobotTransform
from moteur.data.latents.cache import LatentCache
from moteur.data.latents.decoding import pixels
from moteur.data.latents.probe import encoded, pictures_only
from moteur.data.latents.shards import Shard
from moteur.data.lerobot.video import Backend
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight
from moteur.recipes.presets import preset
from moteur.tokenizers import load_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_latents(
    folder: Path | str,
    dataset: RobotDataset,
    foresight: Foresight,
    config: InternVLAA1Config,
    *,
    dtype: torch.dtype | None = None,
    batch: int = 32,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> LatentCache:
    """Write the latents that are not there yet.

    Every shard is written beside its name and renamed: a writer that is killed leaves whole shards and, at most, a file
    ending in `.part` that nobody reads, and the next one goes on after them. Shards are not flushed to the disk one by
    one, so a power failure can cost more.

    Args:
        folder: Where shards go; those of other sets and tokenizers may be there.
        dataset: The prepared set. All frames of its episodes are encoded, and those of the rest of a shard.
        foresight: Holds the frozen tokenizer; frames are encoded where it is.
        config: What it was built from.
        dtype: What latents are stored in; by default what the tokenizer computes in.
        batch: Frames of each camera to encode at once.
        rank: Which part of the work to do, from 0, when several processes share it.
        ranks: Number of such processes.
        progress: Show a progress bar.

    Returns:
        The cache. With one rank it is complete.

    Raises:
        FileNotFoundError: A file of the set is missing.
        ValueError: The set is damaged or changes meanwhile, frames are not of the model's size, or `rank` is not below
            `ranks`.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank: expected a number in [0, {ranks}), got {rank}")
    cache = LatentCache(folder, dataset, foresight, config, dtype=dtype, progress=progress)
    cache.folder.mkdir(parents=True, exist_ok=True)
    pictures = RobotDataset(cache.root, pictures_only(dataset.transform, cache.cameras), backend=cache.backend)
    plain = cache.pictures()
    mine = [shard for shard in cache.shards[rank::ranks] if not cache.path(shard).is_file()]
    frames = sum(int(pictures.source.index.length[list(shard.episodes)].sum()) for shard in mine)
    with tqdm(total=frames, desc="encoding", unit="frame", disable=not progress) as bar:
        for shard in mine:
            tensors = _encoded(cache, shard, pictures, foresight=foresight, batch=batch, bar=bar)
            seen = pixels(plain, cache.cameras, shard)
            shard.expect_unchanged()  # its name is of the files as they were before they were decoded
            _save(cache, shard, tensors, seen)
    return cache


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m moteur.data.latents",
        description="Encode the frames of LeRobot sets with the frozen tokenizer, once.",
    )
    parser.add_argument("sets", nargs="+", type=Path, help="folders of LeRobot sets")
    parser.add_argument("--cosmos", required=True, help="the tokenizer's encoder: a file, a folder or a Hub repository")
    parser.add_argument("--cosmos-revision", help="commit, tag or branch of the tokenizer on the Hub")
    parser.add_argument("--preset", default="3B", help="sizes of the model: 3B, 2B or tiny")
    parser.add_argument("--robot", required=True, help=f"a built-in robot ({', '.join(ROBOTS)}) or a schema file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the shards")
    parser.add_argument("--images", default="uint8", choices=["uint8", "float32"], help="as in RobotTransform")
    parser.add_argument("--compute", default="float32", choices=list(_DTYPES), help="what the tokenizer computes in")
    parser.add_argument("--store", choices=list(_DTYPES), help="what latents are stored in (default: as computed)")
    parser.add_argument("--backend", choices=get_args(Backend), help="video decoder (default: the first that imports)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="frames of each camera to encode at once")
    parser.add_argument("--rank", type=int, default=0, help="part of the work to do, from 0")
    parser.add_argument("--ranks", type=int, default=1, help="number of processes that share the work")
    given = parser.parse_args(arguments)
    config = preset(given.preset)
    foresight = tokenizer_alone(config)
    load_weights(foresight.encoder, given.cosmos, revision=given.cosmos_revision)
    foresight.to(given.device, _DTYPES[given.compute])
    robot = ROBOTS[given.robot] if given.robot in ROBOTS else Robot.load(Path(given.robot))
    nothing = RobotStatistics(robot.name, 1, FieldStatistics(0, (), (), (), ()), None)
    watching = Robot(robot.name, state=(), action=(), cameras=robot.cameras, robot_types=robot.robot_types)
    preparation = RobotTransform(watching, nothing, size=config.frame_size, images=given.images)
    for root in given.sets:
        write_latents(
            given.out,
            RobotDataset(root, preparation, backend=given.backend),
            foresight,
            config,
            dtype=None if given.store is None else _DTYPES[given.store],
            batch=given.batch,
            rank=given.rank,
            ranks=given.ranks,
        )


def tokenizer_alone(config: InternVLAA1Config) -> Foresight:
    """The tokenizer of a model without the model; its weights are to be loaded.

    Raises:
        ValueError: The model has no generation expert, and so no tokenizer.
    """
    if config.gen is None:
        raise ValueError("config.gen: expected sizes of a generation expert, got None")
    return Foresight(config, config.gen, decoder=False)


def _encoded(
    cache: LatentCache,
    shard: Shard,
    pictures: RobotDataset,
    *,
    foresight: Foresight,
    batch: int,
    bar: Any,  # noqa: ANN401 - tqdm ships no types
) -> dict[str, Tensor]:
    lengths = pictures.source.index.length
    tensors = {"probe": cache.probe}
    for place, episode in enumerate(shard.episodes):
        start, parts = int(lengths[:episode].sum()), list[Tensor]()
        for first in range(0, int(lengths[episode]), batch):
            positions = range(start + first, start + min(first + batch, int(lengths[episode])))
            images = torch.stack([pictures[position].frames[:, 0] for position in positions])
            parts.append(encoded(foresight, images, cache.dtype))
            bar.update(len(positions))
        latents = torch.cat(parts)
        tensors |= {f"{place}/{camera}": latents[:, view].contiguous() for view, camera in enumerate(cache.cameras)}
    return tensors


def _save(cache: LatentCache, shard: Shard, tensors: dict[str, Tensor], seen: dict[str, str]) -> None:
    draft = cache.folder / f"{shard.key}.{os.getpid()}.part"
    metadata = {"ingredients": json.dumps(shard.ingredients), "pixels": json.dumps(seen)}
    save_file(tensors, draft, metadata=metadata)
    draft.chmod(0o644)
    os.replace(draft, cache.path(shard))  # noqa: PTH105 - the same, said plainly
