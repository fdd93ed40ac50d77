"""`moteur convert`: weights of the Cosmos tokenizer from TorchScript to safetensors."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import Annotated

import typer

from moteur.commands.arguments import Force


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder with encoder.jit, decoder.jit or both.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write to.", show_default="SOURCE")
    ] = None,
    force: Force = False,
) -> None:
    """Convert Cosmos weights to safetensors.

    The tokenizer is published as TorchScript; its code is not run.
    """
    from moteur.tokenizers import convert_weights

    folder = source if out is None else out
    present = [folder / f"{half}.safetensors" for half in ("encoder", "decoder") if (source / f"{half}.jit").is_file()]
    if taken := [str(path) for path in present if path.exists() and not force]:
        raise ValueError(f"--out: expected new files, got {', '.join(taken)}; --force replaces them")
    for path in convert_weights(source, folder, overwrite=force):
        typer.echo(f"wrote {path}")
