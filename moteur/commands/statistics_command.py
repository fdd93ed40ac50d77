"""`moteur statistics`: statistics of a robot over sets."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moteur.commands.arguments import Force, RobotName, Sets, check_output, robot_of, table

if TYPE_CHECKING:
    from moteur.data import RobotStatistics

_Episodes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RANGES",
        help="Episodes to use, such as 0:80 or 0:40,50,60:80 (ends are left out), or all; once for each set, in order. "
        "Leave out those kept for validation.",
        show_default="all",
    ),
]


def statistics(
    sets: Sets,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file to write.")],
    robot: RobotName = None,
    episodes: _Episodes = None,
    chunk: Annotated[int, typer.Option(help="Length of the action chunks: that of the model.")] = 50,
    workers: Annotated[int, typer.Option(help="Processes to use; 0 for none beside this one.")] = 0,
    force: Force = False,
) -> None:
    """Compute a robot's statistics over sets.

    They are written to a file and printed: what training normalises with.
    """
    from moteur.data import compute_statistics

    check_output(out, force=force)
    chosen = None if not episodes else [episode_numbers(ranges) for ranges in episodes]
    schema = robot_of(sets[0], robot)
    found = compute_statistics(sets, schema, episodes=chosen, chunk=chunk, workers=workers)
    found.save(out)
    typer.echo(statistics_table(found, schema.joints))
    typer.echo(f"wrote {out}")


def episode_numbers(text: str) -> list[int] | None:
    """Numbers of episodes from ranges; None for all.

    Raises:
        ValueError: The text is something else.

    Examples:
        >>> episode_numbers("0:3,7")
        [0, 1, 2, 7]
    """
    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, colon, end = part.partition(":")
        if not first.isdecimal() or (colon and not end.isdecimal()):
            raise ValueError(f"--episodes: expected ranges such as 0:40,50,60:80, or all, got {text!r}")
        numbers += range(int(first), int(end) if colon else int(first) + 1)
    return numbers


def statistics_table(found: "RobotStatistics", joints: tuple[str, ...] | None = None) -> str:
    """Mean, standard deviation and range of each dimension of the state and of the actions."""
    lines = [f"statistics of {found.robot}, chunks of {found.chunk} steps"]
    for title, field, names in (("state", found.state, None), ("action", found.action, joints)):
        if field is None:
            continue
        entries = field.entries or tuple(f"{title}[{dim}]" for dim in range(field.dims))
        labels = [
            entry if names is None else f"{name}: {entry}"
            for entry, name in zip(entries, names or entries, strict=True)
        ]
        rows = [[f"{title} ({field.count:,} rows)", "mean", "std", "min", "max"]]
        for label, *values in zip(labels, field.mean, field.std, field.min, field.max, strict=True):
            rows.append([label, *(f"{value:.4g}" for value in values)])
        lines += ["", table(rows, right=True)]
    return "\n".join(lines)
