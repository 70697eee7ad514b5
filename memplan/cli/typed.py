"""What the user typed, and command lines that say the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from memplan.units import GIB, MIB

__all__ = ["plan_command", "typed_options", "typed_text"]

_SIZES = ("host_memory", "disk", "reserve", "host_bandwidth", "disk_bandwidth")


def typed_options(ctx: click.Context, names: Iterable[str]) -> dict[str, Any]:
    """Return the options of these names that stand on the command line, in the order of help."""
    return {
        name: ctx.params[name]
        for name in names
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def typed_text(name: str, value: Any) -> str:
    """Return an option's value as one types it."""
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in value)
    if name in _SIZES and isinstance(value, int):
        return _size(value)
    return str(value)


def _size(value: int) -> str:
    for size, unit in ((GIB, "GiB"), (MIB, "MiB")):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def plan_command(model: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return `memplan plan` with the user's options and some changed.

    Args:
        model: MODEL as typed.
        given: the user's options.
        settings: changes; None leaves an option out.
    """
    words = ["memplan", "plan", model]
    for name, value in {**given, **settings}.items():
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False or value == ():
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, tuple | list):
            words += [word for item in value for word in (option, str(item))]
        else:
            words += [option, typed_text(name, value)]
    return shlex.join(words)
