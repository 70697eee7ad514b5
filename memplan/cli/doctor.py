"""`memplan doctor`: versions, drivers, permissions, database; what is missing and what mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from memplan.cli import style

__all__ = ["doctor"]

EXIT_FINDING = 1

_PACKAGES = (
    ("memplan", True),
    ("click", True),
    ("sqlalchemy", True),
    ("alembic", True),
    ("psutil", True),
    ("nvidia-ml-py", True),
    ("textual", True),
    ("torch", False),
    ("transformers", False),
    ("accelerate", False),
    ("safetensors", False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What."""
    state: Literal["ok", "note", "missing", "broken"]
    """note = works, with something to know; missing = optional; broken = mend it."""
    detail: str
    """Version, place or reason."""
    mend: str = ""
    """The command that mends it."""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--measure", is_flag=True, help="Measure the interpreter's own memory and keep it.")
def doctor(*, as_json: bool, measure: bool) -> int:
    """Look at what memplan needs here. Exit code 1 when something is broken.

    \b
    memplan doctor
    memplan doctor --measure     plans in which the host computes then use the measured figure
    """
    if measure:
        from memplan.devices.baseline import measure_baseline

        measure_baseline()
    checks = list(_checks())
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print(checks)
    return EXIT_FINDING if any(check.state == "broken" for check in checks) else 0


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    paint = {"ok": style.green, "broken": style.red, "missing": style.bold, "note": style.bold}
    for check in checks:
        state = paint[check.state](check.state.ljust(7))
        style.echo(f"{state}  {check.name.ljust(width)}  {check.detail}")
        if check.mend:
            click.echo(f"{' ' * 9}{' ' * width}  mend it: {check.mend}")


def _checks() -> Iterator[Check]:
    yield Check(name="python", state="ok", detail=platform.python_version())
    for package, needed in _PACKAGES:
        yield _package(package, needed=needed)
    yield _gpu()
    yield _baseline()
    yield from _database()
    yield _processes()


def _package(name: str, *, needed: bool) -> Check:
    try:
        return Check(name=name, state="ok", detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        state: Literal["broken", "missing"] = "broken" if needed else "missing"
        extra = "memplan" if needed else "'memplan[models]'"
        return Check(
            name=name, state=state, detail="not installed", mend=f"pip install --upgrade {extra}"
        )


def _gpu() -> Check:
    from memplan.devices.detect import detect_gpus, gpu_problem

    gpus = detect_gpus()
    if gpus:
        return Check(name="gpu", state="ok", detail=", ".join(gpu.label for gpu in gpus))
    reason = gpu_problem() or "NVML works and shows no GPU"
    return Check(name="gpu", state="missing", detail=f"{reason}; plans name one: --device 24GiB")


def _baseline() -> Check:
    from memplan.devices.baseline import known_baseline
    from memplan.units import format_bytes

    value = known_baseline()
    if value is None:
        return Check(
            name="interpreter",
            state="note",
            detail="not measured: plans for the host assume its memory",
            mend="memplan doctor --measure",
        )
    return Check(name="interpreter", state="ok", detail=f"{format_bytes(value)} measured")


def _database() -> Iterator[Check]:
    import sqlite3

    from memplan import config
    from memplan.errors import StoreError, StoreMissingError
    from memplan.store.engine import sqlite_problem
    from memplan.store.reader import StoreReader
    from memplan.store.readonly import shown

    place = config.setting("database")
    if problem := sqlite_problem():
        yield Check(name="sqlite", state="note", detail=problem)
    else:
        yield Check(name="sqlite", state="ok", detail=sqlite3.sqlite_version)
    try:
        with StoreReader(place.value) as reader:
            count = len(reader.runs(10_000))
        yield Check(name="database", state="ok", detail=f"{shown(place.value)}, {count} runs")
    except StoreMissingError:
        folder = _existing(Path(place.value))
        writable = os.access(folder, os.W_OK)
        yield Check(
            name="database",
            state="note" if writable else "broken",
            detail=f"{place.value} does not exist yet"
            + ("" if writable else f" and {folder} is not writable"),
            mend="" if writable else "export MEMPLAN_DATABASE=~/memplan.db",
        )
    except StoreError as error:
        yield Check(name="database", state="broken", detail=str(error), mend=error.hint)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _processes() -> Check:
    """Can the memory of other users' processes be read in full (PSS, USS)?"""
    try:
        Path("/proc/1/smaps_rollup").read_bytes()
    except OSError as error:
        return Check(
            name="processes",
            state="note",
            detail=f"PSS and USS only of your own processes ({error.strerror})",
        )
    return Check(name="processes", state="ok", detail="PSS and USS of every process")
