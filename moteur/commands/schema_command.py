"""`moteur schema`: a first robot schema from a set."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

from pathlib import Path
from typing import Annotated

import typer
import yaml

from moteur.commands.arguments import Force, Set, check_output

_SLOTS = ("head or front", "left or only wrist", "right wrist")
_State = Annotated[
    list[str] | None, typer.Option(help="Column of the state; repeat in order.", show_default="observation.state")
]
_Action = Annotated[
    list[str] | None, typer.Option(help="Column of the action; repeat in order.", show_default="action")
]
_Camera = Annotated[
    list[str] | None,
    typer.Option(
        help="Camera of each slot, three times: head or front, left or only wrist, right wrist; none for no camera.",
        show_default="the set's first three",
    ),
]


def schema(
    source: Set,
    *,
    out: Annotated[Path | None, typer.Option(help="YAML or JSON file.", show_default="standard output")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the robot.", show_default="the set's robot_type")] = None,
    state: _State = None,
    action: _Action = None,
    camera: _Camera = None,
    force: Force = False,
) -> None:
    """Write a first robot schema from a set.

    Says which camera is in which slot and what to check. Columns come from the set's meta/modality.json if it has one
    (unless --state or --action is given), else from meta/info.json. The schema goes to standard output or to a file,
    the remarks to standard error.
    """
    from moteur.data import Info, Robot

    info = Info.load(source)
    if out is not None:
        check_output(out, force=force)
    cameras = None if not camera else [None if key == "none" else key for key in camera]
    if (source / "meta" / "modality.json").is_file() and not state and not action:
        robot = Robot.from_modality(source, name, cameras=cameras)
    else:
        state, action = state or ["observation.state"], action or ["action"]
        robot = Robot.from_info(source, name, state=state, action=action, cameras=cameras)
    robot.check(info, source)
    remarks = ["Cameras, as released weights expect them:"]
    for place, found in enumerate(robot.cameras):
        slot = _SLOTS[place] if place < len(_SLOTS) else "further view"
        remarks.append(f"  view {place}, {slot}: {found or 'none'}")
    unused = [key for key, feature in info.features.items() if feature.is_visual and key not in robot.cameras]
    remarks += [f"  not used: {', '.join(unused)}"] if unused else []
    remarks += ["Check:", "  cameras: is each in its slot? --camera changes them."]
    joints = "" if robot.joints is None else f" ({', '.join(robot.joints)})"
    remarks.append(
        f"  relative: all {robot.action_dim} action dimensions{joints} are taken as absolute. If they are joint "
        "positions, write runs of relative (+n) and absolute (-n) ones, such as [6, -1] for arm and gripper."
    )
    if out is None:
        typer.echo(yaml.safe_dump(robot.to_dict(), sort_keys=False), nl=False)
    else:
        robot.save(out)
        typer.echo(f"wrote {out}", err=True)
    typer.echo("\n".join(remarks), err=True)
