"""Numbers that a JSON file states against ours, one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "nothing"
_SAME_ROTARY: Mapping[object, tuple[str, ...]] = {
    "default": ("default", "dynamic"),  # dynamic: as default up to the backbone's own context length
    "axial": ("axial", "default"),  # what vision towers have, whatever a version calls it
}


@dataclass(frozen=True)
class Check:
    """One number that has to agree.

    Attributes:
        field: Ours, as `accept` names it.
        paths: Where the file may state it, the first that is there counts.
        expected: What ours makes of it.
        unstated: What its own code takes where it states nothing; without it, it has to state something.
    """

    field: str
    paths: tuple[str, ...]
    expected: object
    unstated: object = ABSENT


@dataclass(frozen=True)
class Difference:
    """A number that does not agree: which file, what was asked of it, and what it states."""

    file: str
    check: Check
    found: object

    def __str__(self) -> str:
        place = f" ({self.file}: {self.check.paths[0]})" if self.check.paths else ""
        return f"{self.check.field}: expected {self.check.expected!r}, found {self.found!r}{place}"


def differences(file: str, values: Mapping[str, Any], checks: list[Check]) -> list[Difference]:
    """What does not agree, in the order of the checks."""
    found = [(check, _find(values, check)) for check in checks]
    return [Difference(file, check, value) for check, value in found if not _same(value, check.expected)]


def _find(values: Mapping[str, Any], check: Check) -> object:
    for path in check.paths:
        place: Any = values
        for part in path.split("."):
            place = place.get(part, ABSENT) if isinstance(place, Mapping) else ABSENT
        if place is not ABSENT and place is not None:
            return place
    return check.unstated


def _same(found: object, expected: object) -> bool:
    if isinstance(found, list):
        found = tuple(found)
    if isinstance(expected, str) and found in _SAME_ROTARY.get(expected, ()):
        return True
    if isinstance(found, bool) is not isinstance(expected, bool):
        return False
    return found == expected
