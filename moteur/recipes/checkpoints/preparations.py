"""What a checkpoint keeps of its robots: statistics in the released form, and how samples were prepared."""

from collections.abc import Mapping
from typing import Any

from moteur.data import Robot, RobotTransform, Window, find_robot
from moteur.recipes.checkpoints.columns import column_statistics, released_statistics

EXTRA = "preparation"


def checkpoint_statistics(*preparations: RobotTransform) -> dict[str, dict[str, Any]]:
    """Plain values to keep beside a model's weights: all that acting needs to know about its robots.

    Robot name to column name to lists under mean, std, min and max, as in a released `stats.json`, which is a subset of
    this; beside them what `column_statistics` adds, and, under `"preparation"`, the schema and the settings. Floats
    survive JSON exactly.

    Args:
        *preparations: One for each robot.

    Raises:
        ValueError: Two are for robots of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for preparation in preparations:
        robot, statistics = preparation.robot, preparation.statistics
        if robot.name in found:
            raise ValueError(f"preparations: expected each robot once, got {robot.name!r} twice")
        settings = {
            "robot": robot.to_dict(),
            "statistics_steps": statistics.steps,
            "window": preparation.window.to_dict(),
            "size": preparation.size,
            "dims": preparation.dims,
            "mode": preparation.mode,
            "images": preparation.images,
        }
        found[robot.name] = {**column_statistics(statistics, robot), EXTRA: settings}
    return found


def preparations_of(values: Mapping[str, Mapping[str, Any]]) -> dict[str, RobotTransform]:
    """The way back from `checkpoint_statistics`, or from a released `stats.json`.

    Args:
        values: Robot name to entry. An entry without settings, as in a released file, is that of a built-in robot,
            prepared as released.

    Raises:
        ValueError: An entry is damaged or incomplete, or names a robot that is not built in and has no schema.
    """
    found: dict[str, RobotTransform] = {}
    for name, entry in values.items():
        settings: dict[str, Any] = dict(entry.get(EXTRA, {}))
        try:
            robot = Robot.from_dict(settings.pop("robot")) if settings else find_robot(name)
            window = Window.from_dict(settings.pop("window", {}))
            steps = settings.pop("statistics_steps", 50)
            found[name] = RobotTransform(
                robot, released_statistics(entry, robot, steps=steps), window=window, **settings
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"statistics of {name!r}: {error}") from error
    return found
