"""Files written atomically, JSON read, and plain values checked against a schema."""

import errno
import fcntl
import glob
import json
import operator
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError, create_model

Parsed = TypeVar("Parsed")
Parsed_co = TypeVar("Parsed_co", covariant=True)

# From pydantic's words to those of our messages, in this order.
_PLAIN = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "an integer",
    "a valid tuple": "a list",
    "a valid array": "a list",
    "an object": "a mapping of fields",
    "a valid ": "a ",
}


@runtime_checkable
class Schema(Protocol[Parsed_co]):
    """A pydantic `TypeAdapter`, whose own generic type the run-time checks do not know."""

    def validate_python(self, value: object, /) -> Parsed_co:
        """Check and convert plain values."""
        ...

    def validate_json(self, data: str, /, *, strict: bool) -> Parsed_co:
        """Check and convert JSON."""
        ...

    def json_schema(self) -> dict[str, Any]:
        """The schema as a JSON schema, for the names of its fields."""
        ...


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically and durably: to a draft, flushed to the disk, then renamed; the folder is flushed too.

    A process that is killed leaves the old file or the new one, and possibly a hidden draft, which ends in `.part`. The
    next writer of the file removes it.
    """
    remove_drafts(path.parent, path.name)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    descriptor = _locked(draft)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def remove_drafts(folder: Path, name: str = "*") -> None:
    """Remove the drafts that killed writers left of this file, or of all in the folder; living writers lock theirs."""
    for draft in folder.glob(f".{name if name == '*' else glob.escape(name)}.*.part"):
        with suppress(OSError), draft.open("rb") as file:  # locked, gone, another user's, or without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()


def to_disk(path: Path) -> None:
    """Flush a file to the disk, or a folder: what was renamed into it is then there after a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _locked(draft: Path) -> int:
    """Make a file and lock it, until it is closed or this process ends."""
    while True:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks: nobody removes drafts there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed by another writer before it was locked


def read_json(path: Path) -> Any:  # noqa: ANN401  # a JSON file can hold anything
    """Read a JSON file; an error names it."""
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got other text ({error})") from error


def parse(schema: Schema[Parsed], value: object, where: object = "", *, strict: bool = False) -> Parsed:
    """Check plain values from a file against a schema, and convert them.

    With `strict`, a number in quotes is no number, and 2.0 no integer.

    Raises:
        ValueError: The values do not fit. One mismatch is named: `where: field: expected X, got Y`.
    """
    try:
        if not strict:
            return schema.validate_python(value)
        return schema.validate_json(
            json.dumps(value, default=operator.index), strict=True
        )  # numpy has its own integers
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{where or 'values'}: expected values that JSON can hold, got others ({error})") from error
    except ValidationError as error:  # an unknown field first: it explains a missing one
        found = min(error.errors(include_url=False), key=lambda entry: entry["type"] != "unexpected_keyword_argument")
    place, kind, got = _place(value, found["loc"]), found["type"], f", got {found['input']!r:.60}"
    if kind == "unexpected_keyword_argument":
        contents = schema.json_schema()
        known = {
            name for part in (contents, *contents.get("$defs", {}).values()) for name in part.get("properties", {})
        }
        close = get_close_matches(str(found["loc"][-1]), known - {found["loc"][-1]}, n=1)
        expected, got = ": unknown field", f", did you mean {close[0]!r}?" if close else ""
    elif kind == "value_error":  # a message of our own, which may begin with a field further inside
        expected = found["msg"].removeprefix("Value error, ")
        got = "" if ", got " in expected else got
        expected = f".{expected}" if place and re.match(r"[\w\[\]]+: ", expected) else f": {expected}"
    elif kind == "missing":
        expected, got = ": expected a value", ", got none"
    elif kind in ("dataclass_type", "dict_type"):
        expected = ": expected a mapping of fields"
    elif kind.startswith("union_tag"):
        about = found.get("ctx", {})
        tag = about["discriminator"].strip("'")
        expected = f".{tag}: expected one of {about.get('expected_tags', 'those known here')}"
        got = f", got {found['input'].get(tag)!r}"
    else:  # "Input should be a valid integer, unable to ...", "Tuple should have at least 1 item after validation, ..."
        expected = re.sub(r"^\w+ should (be|have) ", ": expected ", re.split(r", | after ", found["msg"])[0])
        for theirs, ours in _PLAIN.items():
            expected = expected.replace(theirs, ours)
    begin = f"{where}: {place}" if where and place else f"{where or place}"
    raise ValueError(f"{begin}{expected}{got}".lstrip(".: "))


def schema_of_fields(kind: type[Any]) -> Schema[Any]:
    """Schema of the fields of a dataclass, by which its `__post_init__` checks what Python code gave it.

    Examples:
        >>> from dataclasses import asdict, dataclass
        >>> @dataclass
        ... class Cell:
        ...     row: int
        >>> parse(schema_of_fields(Cell), asdict(Cell("3")), strict=True)
        Traceback (most recent call last):
        ValueError: row: expected an integer, got '3'
    """
    hints = get_type_hints(kind, include_extras=True)
    required: dict[str, Any] = {field.name: (hints[field.name], ...) for field in fields(kind)}
    return TypeAdapter(create_model(kind.__name__, **required))


def _place(value: object, location: Sequence[int | str]) -> str:
    """Where a mismatch is, as one writes it in Python; pydantic also tells members of unions, and keys from values."""
    place = ""
    for part in location:
        if isinstance(value, Mapping) and part not in value and part != location[-1]:
            continue
        if part != "[key]":
            place += f"[{part!r}]"
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
    return re.sub(r"\['(\w+)'\]", r".\1", place).lstrip(".")
