"""`moteur schema`: a first robot schema from a set."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import Annotated

import typer
import yaml

from moteur.commands.arguments import Force, check_output

_SLOTS = ("head or front", "left or only wrist", "right wrist")
_COLUMNS = "Column of the {0}; repeat it for several, in order."


def schema(
    source: Annotated[Path, typer.Argument(metavar="SET", help="Folder of a LeRobot set.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write: .yaml, .yml or .json.", show_default="standard output"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the robot.", show_default="the set's robot_type")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help=_COLUMNS.format("state"), show_default="observation.state"),
    ] = None,
    action: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help=_COLUMNS.format("action"), show_default="action")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help='Camera of each slot, three times: head or front, left or only wrist, right wrist; "none" for no such '
            "camera.",
            show_default="the set's first three",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a first robot schema from a set.

    Says which camera is in which slot and what to check. Columns come from the set's meta/modality.json if it has one
    (unless --state or --action is given), else from meta/info.json. The schema goes to standard output or to a file,
    the remarks to standard error.
    """
    from moteur.data import Robot, read_info

    info = read_info(source)
    if out is not None:
        check_output(out, force=force)
    cameras = None if not camera else [None if key == "none" else key for key in camera]
    if (source / "meta" / "modality.json").is_file() and not state and not action:
        robot = Robot.from_modality(source, name, cameras=cameras)
    else:
        robot = Robot.from_info(
            source, name, state=state or "observation.state", action=action or "action", cameras=cameras
        )
    robot.check(info, source)
    if out is None:
        typer.echo(yaml.safe_dump(robot.to_dict(), sort_keys=False), nl=False)
    else:
        robot.save(out)
        typer.echo(f"wrote {out}", err=True)
    unused = [key for key, feature in info.features.items() if feature.is_visual and key not in robot.cameras]
    typer.echo("Cameras, as released weights expect them:", err=True)
    for place, found in enumerate(robot.cameras):
        slot = _SLOTS[place] if place < len(_SLOTS) else "further view"
        typer.echo(f"  view {place}, {slot}: {found or 'none'}", err=True)
    if unused:
        typer.echo(f"  not used: {', '.join(unused)}", err=True)
    typer.echo("Check:", err=True)
    typer.echo("  cameras: is each in its slot? --camera changes them.", err=True)
    if robot.action:
        joints = "" if robot.joints is None else f" ({', '.join(robot.joints)})"
        typer.echo(
            f"  relative: all {robot.action_dim} action dimensions{joints} are taken as absolute. If they are joint "
            "positions, write runs of relative (+n) and absolute (-n) ones, such as [6, -1] for arm and gripper.",
            err=True,
        )
