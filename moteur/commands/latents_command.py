"""`moteur latents`: the image tokenizer's latents of a set's frames, written once."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moteur.commands.arguments import Checkpoint, Device, Dtype, Revision, RobotName, Sets, counted, robot_of

Images = Literal["uint8", "float32"]


def latents(
    checkpoint: Checkpoint,
    sets: Sets,
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the latents; may hold others.")],
    robot: RobotName = None,
    cosmos: Annotated[str | None, typer.Option(help="Cosmos tokenizer, for a checkpoint without.")] = None,
    images: Annotated[Images, typer.Option(help="How training holds resized frames.")] = "uint8",
    dtype: Dtype = None,
    store: Annotated[str | None, typer.Option(help="Number format of the latents.", show_default="as computed")] = None,
    device: Device = "cpu",
    backend: Annotated[str | None, typer.Option(help="Video decoder: pyav or torchcodec.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Frames of each camera to encode at once.")] = 32,
    rank: Annotated[int, typer.Option(help="Part of the work to do, from 0.")] = 0,
    ranks: Annotated[int, typer.Option(help="Number of processes that share the work.")] = 1,
    revision: Revision = None,
) -> None:
    """Encode the frames of sets once.

    The latents of a checkpoint's image tokenizer are kept for training, which then need not compute them. What is there
    already is kept: an interrupted run goes on where it stopped. Only the tokenizer is loaded.
    """
    import torch

    from moteur.data import FieldStatistics, LatentCache, Robot, RobotStatistics
    from moteur.recipes import load_foresight

    stored = None if store is None else getattr(torch, store, store)
    if isinstance(stored, str):
        raise ValueError(f"--store: expected a number format, such as bfloat16, got {store!r}")
    schemas = [robot_of(root, robot) for root in sets]
    config, foresight = load_foresight(checkpoint, revision=revision, cosmos=cosmos, dtype=dtype, device=device)
    for root, schema in zip(sets, schemas, strict=True):
        # Cameras alone: latents depend on no state and no action.
        watching = Robot(schema.name, (), (), schema.cameras, robot_types=schema.robot_types)
        nothing = RobotStatistics(schema.name, config.chunk, FieldStatistics(0, (), (), (), ()), None)
        made: dict[str, Any] = {"dtype": stored, "backend": backend}
        transform = config.transform(watching, nothing, images=images)
        cache = LatentCache(out, root, transform, encode=foresight.encode, digest=foresight.digest(), **made)
        cache.write(batch_size=batch_size, rank=rank, ranks=ranks)
        done, kind = len(cache.shards) - len(cache.missing), str(cache.dtype).removeprefix("torch.")
        rest = f"; {len(cache.missing)} are left to other ranks" if cache.missing else ""
        typer.echo(f"wrote {out}: latents of {root} in {kind}, {counted(done, 'file')}{rest}")
