"""Text files: written as a whole, read as JSON, and checked against a schema."""

import json
import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Parsed = TypeVar("Parsed")
_schema = lru_cache(maxsize=None)(TypeAdapter)

# From pydantic's words to those of our messages, in this order.
_PLAIN = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "an integer",
    "a valid tuple": "a list",
    "a valid ": "a ",
}


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


def load_json(path: Path) -> Any:  # noqa: ANN401  # a JSON file can hold anything
    """Read a JSON file; an error names it."""
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got other text ({error})") from error


def parse(into: Callable[..., Parsed], value: object, where: object) -> Parsed:
    """Make a value of the type `into`, a dataclass or a list of them, of plain values from a file.

    Raises:
        ValueError: The values do not fit. One mismatch is named: `where: field: expected X, got Y`.
    """
    try:
        return _schema(into).validate_python(value)
    except ValidationError as error:  # an unknown field first: it explains a missing one
        found = min(error.errors(include_url=False), key=lambda entry: entry["type"] != "unexpected_keyword_argument")
    place = "".join(f"[{part!r}]" for part in found["loc"] if part != "[key]")
    place = re.sub(r"\['(\w+)'\]", r".\1", place).lstrip(".")
    kind, message = found["type"], found["msg"]
    if kind == "unexpected_keyword_argument":
        contents = _schema(into).json_schema()
        known = [
            name for part in (contents, *contents.get("$defs", {}).values()) for name in part.get("properties", {})
        ]
        close = get_close_matches(str(found["loc"][-1]), known, n=1)
        raise ValueError(f"{where}: {place}: unknown field" + (f", did you mean {close[0]!r}?" if close else ""))
    if kind == "value_error":  # a message of our own, which may begin with a field further inside
        expected = message.removeprefix("Value error, ")
    elif kind == "missing":
        expected = "expected a value, got none"
    elif kind in ("dataclass_type", "dict_type"):
        expected = "expected a mapping of fields"
    else:  # "Input should be a valid integer, unable to ...", "Tuple should have at least 1 item after validation, ..."
        expected = re.sub(r"^\w+ should (be|have) ", "expected ", re.split(r", | after ", message)[0])
        for theirs, ours in _PLAIN.items():
            expected = expected.replace(theirs, ours)
    inner = "." if place and re.match(r"[\w\[\]]+: ", expected) else ": " if place else ""
    got = "" if ", got " in expected else f", got {found['input']!r:.60}"
    raise ValueError(f"{where}: {place}{inner}{expected}{got}")
