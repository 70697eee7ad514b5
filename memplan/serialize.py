"""Core types to JSON and back.

A document carries `"schema": "memplan.plan/1"`. Reading refuses another kind and a newer major
version with a hint; a newer minor version ("memplan.plan/1.4") is read, its unknown fields are
kept in `extra` and written out again. Keys are the field names; derived values (totals) are
written for readers and recomputed on reading. Numbers must be finite.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types as python_types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from memplan import types
from memplan.errors import SchemaError

__all__ = ["dumps", "from_dict", "load_file", "loads", "to_dict"]

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 256 * 1024**2
"""Largest JSON document that is read from a file."""


def to_dict(value: Any) -> Any:
    """Return a core type (or any value inside one) as JSON-ready dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_to_dict(value)
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return value


def _dataclass_to_dict(value: Any) -> dict[str, Any]:
    cls = type(value)
    result: dict[str, Any] = {}
    if schema := getattr(cls, "SCHEMA", None):
        result["schema"] = schema
    for field in dataclasses.fields(cls):
        if field.name != "extra":
            result[field.name] = to_dict(getattr(value, field.name))
    for name in getattr(cls, "DERIVED", ()):
        result[name] = getattr(value, name)
    for name, text in getattr(value, "extra", {}).items():
        result[name] = json.loads(text)
    return result


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """Return the JSON text of a core type. Raises ValueError for NaN and infinity."""
    return json.dumps(to_dict(value), indent=indent, allow_nan=False, ensure_ascii=False)


def loads(text: str, cls: type[T]) -> T:
    """Read one document of type `cls`. Raises SchemaError with a hint when it is not one."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(
            f"not valid JSON: {error}", hint="check that the file is complete"
        ) from error
    return from_dict(data, cls)


def load_file(path: Path, cls: type[T]) -> T:
    """Read one document of type `cls` from a file. Raises SchemaError when it is not one."""
    try:
        size = path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            raise SchemaError(f"{path} is too large for a {_kind(cls)} ({size} bytes)")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"cannot read {path}: {error}") from error
    return loads(text, cls)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def from_dict(data: Any, cls: type[T]) -> T:
    """Build a core type from the dict that `to_dict` made.

    Raises SchemaError when the schema tag is another one, a field is missing or has a wrong type,
    or the values contradict each other.
    """
    value = _convert(data, cls, _kind(cls))
    return typing.cast(T, value)


def _kind(cls: type) -> str:
    return str(getattr(cls, "SCHEMA", cls.__name__)).split("/")[0]


def _check_schema(data: Mapping[str, Any], cls: type) -> None:
    expected = getattr(cls, "SCHEMA", None)
    if expected is None:
        return
    found = data.get("schema")
    if not isinstance(found, str) or "/" not in found:
        raise SchemaError(
            f"this is no {_kind(cls)} document: it has no schema tag",
            hint=f'expected "schema": "{expected}"',
        )
    kind, _, version = found.partition("/")
    want_kind, _, want_version = expected.partition("/")
    if kind != want_kind:
        raise SchemaError(f"expected a {want_kind} document, found {kind}")
    if version.split(".")[0] != want_version:
        raise SchemaError(
            f"{found} was written by another major version (this one reads {expected})",
            hint="upgrade memplan: pip install --upgrade memplan",
        )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(data: Any, cls: type, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise SchemaError(f"{where}: expected an object, found {type(data).__name__}")
    _check_schema(data, cls)
    hints = _hints(cls)
    known: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, field in fields.items():
        if name == "extra":
            continue
        if name in data:
            known[name] = _convert(data[name], hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where}: field {name!r} is missing")
    if "extra" in fields:
        skip = {*fields, "schema", *getattr(cls, "DERIVED", ())}
        rest = {key: json.dumps(item) for key, item in data.items() if key not in skip}
        known["extra"] = types.FrozenMap(rest)
    try:
        return cls(**known)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{where}: {error}") from error


def _convert(data: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, python_types.UnionType):
        return _convert_union(data, hint, where)
    if origin is tuple:
        return _convert_tuple(data, hint, where)
    if origin is types.FrozenMap:
        if not isinstance(data, Mapping):
            raise SchemaError(f"{where}: expected an object, found {type(data).__name__}")
        item = typing.get_args(hint)[0]
        return types.FrozenMap({k: _convert(v, item, f"{where}.{k}") for k, v in data.items()})
    if origin is typing.Literal:
        if data not in typing.get_args(hint):
            raise SchemaError(f"{where}: {data!r} is not one of {list(typing.get_args(hint))}")
        return data
    if dataclasses.is_dataclass(hint):
        return _build(data, typing.cast(type, hint), where)
    return _convert_scalar(data, hint, where)


def _convert_union(data: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if data is None and type(None) in options:
        return None
    (option,) = (o for o in options if o is not type(None))
    return _convert(data, option, where)


def _convert_tuple(data: Any, hint: Any, where: str) -> Any:
    if not isinstance(data, list | tuple):
        raise SchemaError(f"{where}: expected a list, found {type(data).__name__}")
    item = typing.get_args(hint)[0]
    return tuple(_convert(value, item, f"{where}[{i}]") for i, value in enumerate(data))


def _convert_scalar(data: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        data = float(data)
    wrong = not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool)
    if wrong or (isinstance(data, float) and not math.isfinite(data)):
        raise SchemaError(f"{where}: expected {hint.__name__}, found {data!r}")
    return data
