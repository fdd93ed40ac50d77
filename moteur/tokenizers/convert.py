"""Command: turns `encoder.jit` and `decoder.jit` into safetensors, once, without running anything in them.

python -m moteur.tokenizers.convert FOLDER [--to FOLDER] [--overwrite]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moteur.tokenizers.weights import read_weights, write_safetensors


def convert(source: Path, destination: Path | None = None, *, overwrite: bool = False) -> list[Path]:
    """Write `encoder.safetensors` and `decoder.safetensors` from the TorchScript files in a folder.

    Values, dtypes and names stay as they are; the constants of the Haar transform are left out. A file appears under
    its name only when it is whole.

    Args:
        source: Folder with `encoder.jit`, `decoder.jit` or both.
        destination: Folder to write to, made if needed. Default: `source`.
        overwrite: Replace files that are there; otherwise they are an error, before anything is written.

    Returns:
        The files written.

    Raises:
        ValueError: No TorchScript file in `source`, one that cannot be read, or a file in the way.
    """
    destination = destination or source
    jobs = [
        (half, source / f"{half}.jit", destination / f"{half}.safetensors")
        for half in ("encoder", "decoder")
        if (source / f"{half}.jit").is_file()
    ]
    if not jobs:
        raise ValueError(f"source: {source} holds neither encoder.jit nor decoder.jit")
    for _, _, target in jobs:
        if target.exists() and not overwrite:
            raise ValueError(f"{target}: already there, overwrite it explicitly")
    tensors = {target: read_weights(path, half) for half, path, target in jobs}
    destination.mkdir(parents=True, exist_ok=True)
    for target, content in tensors.items():
        write_safetensors(target, content)
    return list(tensors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every file is written, 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m moteur.tokenizers.convert",
        description="Turn encoder.jit and decoder.jit into safetensors, without running anything in them.",
    )
    parser.add_argument("source", type=Path, help="folder with encoder.jit, decoder.jit or both")
    parser.add_argument("--to", type=Path, help="folder to write to (default: the same)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.source, options.to, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"wrote {path}\n" for path in written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
