"""Plans as `memplan plan` makes them, and their files as `memplan emit` writes them."""

from __future__ import annotations

import contextlib
import io

from memplan.cli.main import run
from memplan.serialize import loads
from memplan.types import Plan


def planned(model, *options) -> Plan:
    """Return the plan of a command line; training plans by closed form, which takes no seconds."""
    extra = ("--estimator", "formula") if "train" in options else ()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(["plan", str(model), "--json", *map(str, options), *extra])
    assert code in (0, 1), out.getvalue()
    return loads(out.getvalue(), Plan)


def emitted(target, model, *options) -> dict[str, str]:
    """Return file name -> content."""
    from memplan.cli.emit import written_for

    return written_for(target, planned(model, *options))


def written(folder, target, model, *options):
    """Return a folder with the files of a target."""
    from memplan.cli.emit import write_files

    write_files(emitted(target, model, *options), folder, force=False)
    return folder


def arguments_of(script):
    """Return the words of the command that a shell script of ours runs."""
    import shlex

    _, _, command = script.partition("\nexec ")
    return [word for word in shlex.split(command.replace("\\\n", " ")) if word != "$@"]


def needs(name):
    """Skip a test where an engine is not installed."""
    import importlib.util

    import pytest

    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: make engines")
