"""`moteur latents`: the image tokenizer's latents of a set's frames, written once."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moteur.commands.arguments import Device, Dtype, Revision, counted, read_robot, robot_of


class Images(StrEnum):
    """How resized frames are held, see `RobotTransform`."""

    UINT8 = "uint8"
    FLOAT32 = "float32"


class Backend(StrEnum):
    """Video decoders, see `LeRobotSet`."""

    PYAV = "pyav"
    TORCHCODEC = "torchcodec"


def latents(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub id of a checkpoint.", show_default=False)
    ],
    sets: Annotated[list[Path], typer.Argument(metavar="SET", help="Folders of LeRobot sets.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the latents; may hold others.", show_default=False)
    ],
    robot: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Name of a built-in robot, such as aloha, or a schema file; its cameras count.",
            show_default="the built-in robot that each set names",
        ),
    ] = None,
    cosmos: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Cosmos tokenizer, for a checkpoint that comes without: a file, folder or Hub id.",
        ),
    ] = None,
    images: Annotated[Images, typer.Option(help="How resized frames are held in training.")] = Images.UINT8,
    dtype: Dtype = None,
    store: Annotated[
        str | None, typer.Option(help="Number format of the latents.", show_default="as computed", metavar="NAME")
    ] = None,
    device: Device = "cpu",
    backend: Annotated[Backend | None, typer.Option(help="Video decoder.", show_default="the first available")] = None,
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

    from moteur.data import FieldStatistics, Robot, RobotDataset, RobotStatistics, write_latents
    from moteur.recipes import InternVLAA1

    schemas = [robot_of(root) if robot is None else read_robot(robot) for root in sets]
    stored = None if store is None else getattr(torch, store, None)
    if store is not None and not isinstance(stored, torch.dtype):
        raise ValueError(f"--store: expected the name of a number format, such as bfloat16, got {store!r}")
    # Mapped tensors are read from their files when they are used: of these, only those of the tokenizer are.
    model = InternVLAA1.from_pretrained(checkpoint, revision=revision, cosmos=cosmos, dtype=dtype, mapped=True)
    config, foresight = model.config, model.foresight
    del model
    if foresight is None:
        raise ValueError(
            f"{checkpoint}: expected a model with a generation expert, got one without, which needs no latents"
        )
    foresight.encoder.to(device)
    for root, schema in zip(sets, schemas, strict=True):
        # Cameras alone: latents depend on no state and no action.
        watching = Robot(schema.name, (), (), schema.cameras, robot_types=schema.robot_types)
        nothing = RobotStatistics(schema.name, config.chunk, FieldStatistics(0, (), (), (), ()), None)
        dataset = RobotDataset(
            root, config.transform(watching, nothing, images=images.value), backend=backend and backend.value
        )
        cache = write_latents(
            out,
            dataset,
            encode=foresight.encode,
            digest=foresight.digest(),
            dtype=stored,
            batch_size=batch_size,
            rank=rank,
            ranks=ranks,
        )
        done, kind = len(cache.shards) - len(cache.missing), str(cache.dtype).removeprefix("torch.")
        rest = f"; {len(cache.missing)} are left to other ranks" if cache.missing else ""
        typer.echo(f"wrote {out}: latents of {root} in {kind}, {counted(done, 'file')}{rest}")
