"""`stats.json`: what each robot's data look like, kept with the weights that were trained on them."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

Statistics: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Robot name to plain values.

Either `RobotStatistics.to_dict()` of `moteur.data`, or, in released files, column name to lists under mean,
std, min and max, which `released_statistics` reads.
"""


def check_statistics(values: object) -> Statistics:
    """The values of a `stats.json`, after checking that they map robots to fields of plain values.

    Raises:
        ValueError: They are something else; the place is named.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"statistics: expected an object from robot to fields, got {type(values).__name__}")
    for robot, fields in values.items():
        if not isinstance(fields, Mapping):
            raise ValueError(f"statistics of {robot!r}: expected an object, got {fields!r}")
    plain = {str(robot): dict(fields) for robot, fields in values.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"statistics: expected plain, finite values that JSON can hold ({error})") from error
    return plain
