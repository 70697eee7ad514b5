"""Settings and where each was set.

Order: command-line option > MEMPLAN_* environment > [tool.memplan] of the project's
pyproject.toml > the user's config.toml > default. Places by platformdirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.errors import UsageError

__all__ = [
    "SETTINGS",
    "Origin",
    "Setting",
    "Value",
    "cache_dir",
    "everywhere",
    "load",
    "moved_keys",
    "setting",
]

Origin = str
"""Where a value was set: "default", "MEMPLAN_DATABASE", or a file's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One thing that can be set."""

    name: str
    """Key in the files; the environment variable is MEMPLAN_ + upper case."""
    default: str
    """Value when nobody sets it."""
    help: str
    """One sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A setting's value in force."""

    setting: Setting
    """Which setting."""
    value: str
    """The value, as text."""
    origin: Origin
    """Where it was set."""


def _dir(kind: str) -> Path:
    import platformdirs

    found = getattr(platformdirs, f"user_{kind}_dir")("memplan", appauthor=False)
    return Path(str(found))


def cache_dir() -> Path:
    """Return the folder for what can be made again (tensor inventories)."""
    return Path(setting("cache").value).expanduser()


def _settings() -> dict[str, Setting]:
    return {
        item.name: item
        for item in (
            Setting(
                name="database",
                default=str(_dir("data") / "memplan.db"),
                help="The SQLite file with plans, runs and samples.",
            ),
            Setting(
                name="cache",
                default=str(_dir("cache")),
                help="Folder for tensor inventories of models that were built once.",
            ),
            Setting(name="unit", default="GiB", help="Unit of printed sizes: GiB, MiB or GB."),
            Setting(name="interval", default="1.0", help="Seconds between the daemon's samples."),
            Setting(
                name="run_interval", default="0.1", help="Seconds between the samples of a run."
            ),
            Setting(
                name="watch",
                default="",
                help="What the daemon watches by itself: name:python* gpu:all user:alice ...",
            ),
            Setting(
                name="cpu_budget",
                default="1.0",
                help="Percent of one core that the daemon may use; beyond it samples less often.",
            ),
            Setting(
                name="group",
                default="",
                help="Group whose members may ask the daemon (their own processes in full).",
            ),
            Setting(
                name="store_commands",
                default="no",
                help="Store whole command lines of what is watched, secrets hidden: yes or no.",
            ),
            Setting(
                name="prometheus",
                default="off",
                help="Port on this machine where the daemon answers Prometheus, or off.",
            ),
            Setting(
                name="otlp",
                default="off",
                help="URL that the daemon pushes OpenTelemetry metrics to, or off.",
            ),
            Setting(
                name="flush", default="10", help="Seconds the host's samples wait to be packed."
            ),
            Setting(name="keep_raw", default="48h", help="Age up to which samples are kept."),
            Setting(name="keep_1m", default="30d", help="Age up to which minutes are kept."),
            Setting(name="keep_1h", default="730d", help="Age up to which hours are kept."),
            Setting(name="database_cap", default="1GiB", help="Largest database file."),
            Setting(name="fleet", default="", help="URL of a fleet's PostgreSQL; empty = none."),
            Setting(
                name="fleet_raw",
                default="no",
                help="Copy samples to the fleet, too, not only roll-ups and peaks: yes or no.",
            ),
            Setting(
                name="fleet_outbox",
                default="256MiB",
                help="Most that may wait for the fleet's database.",
            ),
            Setting(
                name="theme",
                default="auto",
                help="The dashboard's colours: auto, memplan-dark, -light, -contrast or -terminal.",
            ),
            Setting(
                name="glyphs",
                default="auto",
                help="What the dashboard draws with: auto, braille, block or ascii.",
            ),
            Setting(
                name="language", default="auto", help="The dashboard's language: auto, en or pt_BR."
            ),
        )
    }


SETTINGS = tuple(_settings())
"""Names of all settings."""


KEYS = "keys"
"""Name of the table that moves the dashboard's keys."""


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    """Return a file's tables: settings are looked up one by one, files are parsed once."""
    import tomllib

    return tomllib.loads(text)


def _table(path: Path, keys: tuple[str, ...]) -> Any:
    """Return a table of a TOML file, {} where there is no such file or table."""
    try:
        data: Any = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read settings from {path}: {error}") from error
    for key in keys:
        data = data.get(key, {}) if isinstance(data, Mapping) else {}
    return data


def _file_values(path: Path, keys: tuple[str, ...]) -> Mapping[str, Any]:
    data = _table(path, keys)
    if not isinstance(data, Mapping):
        raise UsageError(f"{path}: [{'.'.join(keys)}] is not a table")
    data = {name: value for name, value in data.items() if name != KEYS}
    unknown = sorted(set(data) - set(SETTINGS))
    if unknown:
        raise UsageError(f"{path}: unknown setting {unknown[0]!r}", hint="memplan config show")
    for name, value in data.items():
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise UsageError(f"{path}: {name} is {value!r}, neither text nor number")
    return data


def _files(folder: Path | None) -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """Return each settings file with the path of its table, the strongest first."""
    project = (folder or Path.cwd()) / "pyproject.toml"
    return (project, ("tool", "memplan")), (_dir("config") / "config.toml", ())


def moved_keys(folder: Path | None = None) -> Mapping[str, str]:
    """Return the dashboard's moved keys, binding id -> keys, of the tables [keys].

    Raises UsageError for a table that maps names to something else than text.
    """
    moved: dict[str, str] = {}
    for path, keys in reversed(_files(folder)):
        table = _flat(_table(path, (*keys, KEYS)))
        if any(not isinstance(value, str) for value in table.values()):
            raise UsageError(
                f"{path}: [{'.'.join((*keys, KEYS))}] maps an action's name to keys",
                hint='such as app.pause = "p"; memplan tui --keys lists the names',
            )
        moved |= table
    return moved


def _flat(table: Any, prefix: str = "") -> dict[str, Any]:
    """Return a table of tables as one, names joined by dots: TOML reads app.pause as two names."""
    if not isinstance(table, Mapping):
        return {prefix: None}
    found: dict[str, Any] = {}
    for name, value in table.items():
        path = f"{prefix}.{name}" if prefix else name
        found |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def load(environ: Mapping[str, str] = os.environ, folder: Path | None = None) -> tuple[Value, ...]:
    """Return every setting with its value and origin. Raises UsageError for a bad file."""
    return tuple(values[0] for values in everywhere(environ, folder))


def everywhere(
    environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> tuple[tuple[Value, ...], ...]:
    """Return every setting with all its values, the one that counts first, the default last.

    Raises UsageError for a bad file.
    """
    layers = tuple((path, _file_values(path, keys)) for path, keys in _files(folder))
    return tuple(tuple(_found(item, environ, layers)) for item in _settings().values())


def _found(
    item: Setting, environ: Mapping[str, str], layers: tuple[tuple[Path, Mapping[str, Any]], ...]
) -> Iterator[Value]:
    """Yield a setting's values wherever it is set, the one that counts first."""
    variable = f"MEMPLAN_{item.name.upper()}"
    if environ.get(variable):
        yield Value(setting=item, value=environ[variable], origin=variable)
    for path, values in layers:
        if item.name in values:
            yield Value(setting=item, value=str(values[item.name]), origin=str(path))
    yield Value(setting=item, value=item.default, origin="default")


def setting(name: str) -> Value:
    """Return one setting in force."""
    return next(value for value in load() if value.setting.name == name)
