"""A configuration as JSON and back: every field, nothing else, each of its own type."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from moteur.recipes.config import InternVLAA1Config

OWN_TYPE = "moteur/internvla_a1"
_VERSION = 1
_KIND = "kind"


def config_to_json(config: InternVLAA1Config) -> dict[str, Any]:
    """Plain values for a `config.json` of our own layout.

    >>> from moteur.recipes import preset
    >>> values = config_to_json(preset("3B"))
    >>> values["type"], values["vision"]["kind"]
    ('moteur/internvla_a1', 'Qwen3VLVision')
    >>> config_from_json(values) == preset("3B")
    True
    """
    values = asdict(config)
    values["vision"] = {_KIND: type(config.vision).__name__, **values["vision"]}
    return {"type": OWN_TYPE, "version": _VERSION, **_plain(values)}


def config_from_json(values: Mapping[str, Any]) -> InternVLAA1Config:
    """The configuration of a `config.json` of our own layout.

    Raises:
        ValueError: A field is missing, unknown or of another type, or the sizes fit no model; the field is named.
    """
    rest = dict(values)
    kind, version = rest.pop("type", None), rest.pop("version", None)
    if kind != OWN_TYPE:
        raise ValueError(f"type: expected {OWN_TYPE!r}, got {kind!r}")
    if version != _VERSION:
        raise ValueError(f"version: expected {_VERSION}, got {version!r}; another version of moteur wrote this")
    return cast("InternVLAA1Config", _decoded(InternVLAA1Config, rest, ""))


def _plain(value: object) -> Any:  # noqa: ANN401 -- JSON
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _decoded(expected: Any, value: object, path: str) -> object:  # noqa: ANN401 -- an annotation
    if get_origin(expected) is UnionType:
        return _one_of(get_args(expected), value, path)
    if is_dataclass(expected):
        return _record(cast("type", expected), value, path)
    if get_origin(expected) is tuple:
        return _tuple(get_args(expected), value, path)
    if get_origin(expected) is Literal:
        if value not in get_args(expected):
            raise ValueError(f"{path}: expected one of {list(get_args(expected))}, got {value!r}")
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{path}: expected {expected.__name__}, got {value!r}")
    return value


def _one_of(choices: tuple[Any, ...], value: object, path: str) -> object:
    real = [choice for choice in choices if choice is not NoneType]
    if value is None and len(real) < len(choices):
        return None
    if len(real) == 1:
        return _decoded(real[0], value, path)
    kinds = {choice.__name__: choice for choice in real}
    if not isinstance(value, Mapping) or value.get(_KIND) not in list(kinds):
        raise ValueError(f"{path}.{_KIND}: expected one of {sorted(kinds)}, got {value!r}")
    rest = {name: item for name, item in value.items() if name != _KIND}
    return _decoded(kinds[value[_KIND]], rest, path)


def _record(kind: type, value: object, path: str) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: expected an object with the fields of {kind.__name__}, got {value!r}")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    unknown, missing = sorted(set(value) - set(names)), [name for name in names if name not in value]
    if unknown or missing:
        where = path or "config.json"
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    prefix = f"{path}." if path else ""
    return kind(**{name: _decoded(hints[name], value[name], f"{prefix}{name}") for name in names})


def _tuple(items: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: expected a list, got {value!r}")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ValueError(f"{path}: expected {len(items)} entries, got {value!r}")
    return tuple(
        _decoded(item, entry, f"{path}[{index}]") for index, (item, entry) in enumerate(zip(items, value, strict=True))
    )
