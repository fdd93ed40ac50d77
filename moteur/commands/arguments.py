"""Arguments that several subcommands take, and the layout of what they print."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moteur.data import Robot

Set = Annotated[Path, typer.Argument(metavar="SET", help="Folder of a LeRobot set.")]
Sets = Annotated[list[Path], typer.Argument(metavar="SET", help="Folders of LeRobot sets.")]
Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub id of a checkpoint.")]
RobotName = Annotated[
    str | None,
    typer.Option(help="Built-in robot, such as aloha, or schema file.", show_default="built-in robot that SET names"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Device = Annotated[str, typer.Option(help="Where to compute, such as cuda.")]
Dtype = Annotated[str | None, typer.Option(help="Number format, such as bfloat16.", show_default="as stored")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a checkpoint on the Hub.")]


def robot_of(root: Path, name: str | None) -> "Robot":
    """Schema of a set's robot: from a file, built-in by name, or the built-in one that `info.json` names.

    Raises:
        ValueError: There is none.
    """
    from moteur.data import Info, Robot

    if name is not None and Path(name).suffix in {".yaml", ".yml", ".json"}:
        return Robot.load(name)
    try:
        return Robot.known(Info.load(root).robot_type if name is None else name)
    except ValueError as error:
        expected = f"for {root}, which names no built-in robot" if name is None else "a schema file or a built-in robot"
        raise ValueError(f"--robot: expected {expected} ({error}; moteur schema SET writes its file)") from error


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


def table(rows: Sequence[Sequence[str]], *, right: bool = False, indent: int = 0) -> str:
    """Rows of text in aligned columns; with `right`, all columns but the first are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(" " * indent + "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


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
