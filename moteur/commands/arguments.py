"""Arguments that several subcommands take, and the layout of what they print."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moteur.data import Robot

Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to compute, such as cuda.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Number format of the weights, such as bfloat16.", show_default="as stored", metavar="NAME"),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a checkpoint on the Hub.", show_default=False),
]


def read_robot(name: str) -> "Robot":
    """A schema from its file, or a built-in one by its name or by the `robot_type` of its sets.

    Raises:
        ValueError: There is neither.
    """
    from moteur.data import ROBOTS, Robot, find_robot

    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml", ".json"}:
        return Robot.load(path)
    try:
        return ROBOTS[name] if name in ROBOTS else find_robot(name)
    except ValueError as error:
        raise ValueError(
            f"--robot: expected a schema file or one of {sorted(ROBOTS)}, got {name!r}; moteur schema SET makes a "
            "first schema of another robot"
        ) from error


def robot_of(root: Path) -> "Robot":
    """The built-in schema that a set's `info.json` names.

    Raises:
        ValueError: It names none of them.
    """
    from moteur.data import find_robot, read_info

    try:
        return find_robot(read_info(root).robot_type)
    except ValueError as error:
        raise ValueError(f"--robot: expected for {root}, which names no built-in robot ({error})") from error


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output file that exists, or that has no folder to be written to.

    Raises:
        ValueError: The file exists and may not be replaced, or its name is that of a folder.
        FileNotFoundError: There is no such folder.
    """
    if path.is_dir() or (path.exists() and not force):
        hint = "a folder" if path.is_dir() else "which exists; --force replaces it"
        raise ValueError(f"--out: expected the name of a new file, got {path}, {hint}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: expected a file in an existing folder, got {path}")


def table(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Rows of text in aligned columns; with `right`, all columns but the first are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [cell.rjust(width) if right and place else cell.ljust(width) for place, (cell, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def counted(count: int, what: str) -> str:
    """A number and its noun, such as "1 file" and "2 files"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def file_size(count: int) -> str:
    """Bytes as people read them.

    Examples:
        >>> file_size(1_234_567)
        '1.2 MB'
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
