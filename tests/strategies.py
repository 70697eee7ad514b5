"""Hypothesis strategies for the core types: any value that their checks allow."""

from __future__ import annotations

import dataclasses
import types as python_types
import typing
from typing import Any

from hypothesis import strategies as st

from memplan import types
from memplan.types import FrozenMap, Line

TEXT = st.text(max_size=12)
SIZE = st.integers(0, 2**62)
JSON_TEXT = st.sampled_from(["1", "null", '"x"', "[1, 2.5]", '{"a": {"b": true}}'])


def _extra(known: set[str]) -> st.SearchStrategy[FrozenMap[str]]:
    names = st.text("abcxyz_", min_size=1, max_size=8).filter(lambda name: name not in known)
    return st.dictionaries(names, JSON_TEXT, max_size=2).map(FrozenMap)


def _for_hint(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, python_types.UnionType):
        return st.one_of([st.none() if a is type(None) else _for_hint(a) for a in args])
    if origin is tuple:
        return st.lists(_for_hint(args[0]), max_size=3).map(tuple)
    if origin is FrozenMap:
        return st.dictionaries(TEXT, _for_hint(args[0]), max_size=3).map(FrozenMap)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    return {
        int: st.integers(1, 2**62),
        str: TEXT,
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }[hint]


@st.composite
def _line(draw: st.DrawFn) -> Line:
    low, middle, high = sorted(draw(st.tuples(SIZE, SIZE, SIZE)))
    return Line(
        part=draw(st.sampled_from(types.PARTS)),
        bytes=middle,
        low_bytes=low,
        high_bytes=high,
        basis=draw(st.sampled_from(["exact", "formula", "trace", "measured", "assumed"])),
        source=draw(TEXT),
        extra=draw(_extra({field.name for field in dataclasses.fields(Line)})),
    )


def instances(cls: type) -> st.SearchStrategy[Any]:
    """Return a strategy for one dataclass, by the types of its fields."""
    if cls is Line:
        return _line()
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    derived = set(getattr(cls, "DERIVED", ()))
    parts = {name: _for_hint(hints[name]) for name in fields if name != "extra"}
    if "extra" in fields:
        parts["extra"] = _extra(fields | derived | {"schema"})
    return st.deferred(lambda: st.builds(cls, **parts))
