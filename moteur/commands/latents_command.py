"""`moteur latents`: the image tokenizer's latents of a set's frames, written once."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moteur.commands.arguments import Device, Dtype, Revision, RobotName, counted, robot_of

Images = Literal["uint8", "float32"]
Sizes = Literal["3B", "2B", "tiny"]


def latents(
    places: Annotated[
        list[str], typer.Argument(metavar="[CHECKPOINT] SET...", help="A checkpoint, then folders of LeRobot sets.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the latents; may hold others.")],
    robot: RobotName = None,
    cosmos: Annotated[str | None, typer.Option(help="Cosmos tokenizer, for a checkpoint without, or --preset.")] = None,
    cosmos_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of --cosmos on the Hub.")] = None,
    preset: Annotated[
        Sizes | None, typer.Option(help="Sizes, such as 3B, before there is a checkpoint; all places are sets then.")
    ] = None,
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
    from moteur import recipes
    from moteur.data import FieldStatistics, LatentCache, Robot, RobotStatistics

    source, sizes = (places[0], None) if preset is None else (None, recipes.preset(preset))
    sets = [Path(place) for place in places[preset is None :]]
    if not sets:
        raise ValueError("SET: expected the folder of a LeRobot set behind the checkpoint, got none")
    schemas = [robot_of(root, robot) for root in sets]
    tokenizer: dict[str, Any] = {"config": sizes, "cosmos": cosmos, "cosmos_revision": cosmos_revision}
    config, foresight = recipes.load_foresight(source, revision=revision, dtype=dtype, device=device, **tokenizer)
    for root, schema in zip(sets, schemas, strict=True):
        # Cameras alone: latents depend on no state and no action.
        watching = Robot(schema.name, (), (), schema.cameras, robot_types=schema.robot_types)
        nothing = RobotStatistics(schema.name, config.chunk, FieldStatistics(0, (), (), (), ()), None)
        made: dict[str, Any] = {"dtype": store, "backend": backend}
        transform = config.transform(watching, nothing, images=images)
        cache = LatentCache(out, root, transform, encode=foresight.encode, digest=foresight.digest(), **made)
        cache.write(batch_size=batch_size, rank=rank, ranks=ranks)
        done, kind = len(cache.shards) - len(cache.missing), str(cache.dtype).removeprefix("torch.")
        rest = f"; {len(cache.missing)} are left to other ranks" if cache.missing else ""
        typer.echo(f"wrote {out}: latents of {root} in {kind}, {counted(done, 'file')}{rest}")
