"""Text files: written as a whole, and checked against a schema when read."""

import os
import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

Parsed = TypeVar("Parsed")

_schema = lru_cache(TypeAdapter)
_PLAIN = {"valid tuple": "list", "valid dictionary": "mapping", "a valid integer": "an integer", "a valid ": "a "}


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically and durably: to a temporary file, flushed to the disk, then renamed.

    A process that is killed leaves the old file or the new one, and possibly a hidden file that ends in `.part`.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def parse(kind: type[Parsed], value: object, where: object) -> Parsed:
    """Check the contents of a file against a dataclass, and convert them.

    Args:
        kind: The dataclass.
        value: Plain values, as JSON or YAML holds them.
        where: Name of the file, for the message.

    Raises:
        ValueError: The contents do not fit. One mismatch is named: `where: field: expected X, got Y`.
    """
    try:
        return _schema(kind).validate_python(value)
    except ValidationError as error:  # an unknown field first: it explains a missing one
        found = min(error.errors(include_url=False), key=lambda entry: entry["type"] != "unexpected_keyword_argument")
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]).removeprefix(".")
    if found["type"] == "unexpected_keyword_argument":
        schema = _schema(kind).json_schema()
        known = [name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})]
        close = get_close_matches(str(found["loc"][-1]), known, n=1)
        raise ValueError(f"{where}: {place}: unknown field" + (f", did you mean {close[0]!r}?" if close else ""))
    if "ctx" in found and found["type"] == "value_error":  # a message of our own, which begins with a field
        raise ValueError(f"{where}: {place}{'.' if place else ''}{found['ctx']['error']}")
    if found["type"] == "missing":
        raise ValueError(f"{where}: {place}: expected a value, got none")
    expected = "expected a mapping of fields"
    if found["type"] != "dataclass_type":  # "Input should be a valid integer, got a number with a fractional part"
        expected = re.sub(r"^\w+ should (be|have) ", "expected ", found["msg"].split(", ")[0])
        for theirs, ours in _PLAIN.items():
            expected = expected.replace(theirs, ours)
    raise ValueError(": ".join(filter(None, (str(where), place, expected))) + f", got {found['input']!r:.60}")
