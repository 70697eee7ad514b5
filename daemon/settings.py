"""The daemon's settings: read together, checked together, so that a bad one changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from memplan_daemon.access import group_id
from memplan_daemon.sampler import SHORTEST_INTERVAL_S
from memplan_daemon.watching import Rule, parse_rule

from memplan import config
from memplan.errors import UsageError
from memplan.store.open import seconds
from memplan.units import parse_bytes

__all__ = ["DaemonSettings", "read_settings"]

_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0", "")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """What a daemon runs with."""

    interval_s: float
    """Seconds between samples."""
    rules: tuple[Rule, ...] = ()
    """What it watches by itself."""
    cpu_share: float = 0.0
    """Share of one core that it may use; 0 = no limit."""
    gid: int | None = None
    """Group whose members may ask it; None = its owner only."""
    store_commands: bool = False
    """Keep whole command lines, without what looks like a secret."""
    prometheus: tuple[str, int] | None = None
    """Loopback address and port to answer scrapes at; None = it listens nowhere."""
    otlp: str = ""
    """Where to push OpenTelemetry metrics to; "" = nowhere."""
    fleet: str = field(default="", repr=False)
    """URL of a fleet's PostgreSQL, perhaps with a password; "" = none."""
    fleet_raw: bool = False
    """Copy samples there, too."""
    fleet_outbox_bytes: int = 0
    """Bytes that may wait for it."""
    problems: tuple[str, ...] = ()
    """What is set and makes no sense, but is overridden: it would count one day."""


def read_settings(
    *, interval_s: float | None = None, rules: tuple[str, ...] = ()
) -> DaemonSettings:
    """Return the settings in force.

    Args:
        interval_s: from the command line; None = as set.
        rules: from the command line, besides those that are set.

    Raises UsageError for one that makes no sense, with its name.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    for values in config.everywhere():
        name = values[0].setting.name
        overridden = name == "interval" and interval_s is not None
        if name in _READ:
            if not overridden:
                found[name] = _READ[name](values[0].value)
            problems += filter(None, map(_problem, values if overridden else values[1:]))
    return DaemonSettings(
        interval_s=found["interval"] if interval_s is None else interval_s,
        rules=(*found["watch"], *map(parse_rule, rules)),
        cpu_share=found["cpu_budget"] / 100,
        gid=found["group"],
        store_commands=found["store_commands"],
        prometheus=found["prometheus"],
        otlp=found["otlp"],
        fleet=found["fleet"],
        fleet_raw=found["fleet_raw"],
        fleet_outbox_bytes=found["fleet_outbox"],
        problems=tuple(problems),
    )


def _problem(value: config.Value) -> str:
    """Return what is wrong with a value that does not count at the moment; "" for nothing."""
    try:
        _READ[value.setting.name](value.value)
    except UsageError as error:
        return f"{value.origin}: {value.setting.name}, which is overridden, is bad: {error}"
    return ""


def _rules(text: str) -> tuple[Rule, ...]:
    return tuple(map(parse_rule, text.replace(",", " ").split()))


def _number(name: str, text: str, least: float = 0.0) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"{name} is not a number: {text!r}", hint="memplan config show") from error
    if not least <= value <= 86400:
        raise UsageError(f"{name} makes no sense: {text!r}", hint="memplan config show")
    return value


def _switch(name: str, text: str) -> bool:
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise UsageError(f"{name} is neither yes nor no: {text!r}", hint="memplan config show")


def _address(text: str) -> tuple[str, int] | None:
    """Return (address, port) of "9400", "127.0.0.1:9400" or "[::1]:9400"; None for "off"."""
    if text.lower() in _NO:
        return None
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"prometheus is no port: {text!r}", hint="prometheus = 9400, or off")
    if host not in _LOOPBACK:
        raise UsageError(
            f"memplan answers scrapes on this machine only, not at {host}",
            hint="put a reverse proxy with TLS and a password before 127.0.0.1:9400",
        )
    return host, int(port)


def _url(text: str) -> str:
    if text.lower() in _NO:
        return ""
    if urlsplit(text).scheme not in ("http", "https"):
        raise UsageError(
            f"otlp is no URL: {text!r}", hint="otlp = http://localhost:4318/v1/metrics"
        )
    return text


def _fleet(text: str) -> str:
    if text and not (text.startswith("postgresql") and "://" in text):
        raise UsageError(
            "fleet is no URL of a PostgreSQL database",  # it may hold a password
            hint="fleet = postgresql+psycopg://HOST/NAME",
        )
    return text


def _named(name: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader whose errors begin with the setting's name."""

    def named(text: str) -> Any:
        try:
            return read(text)
        except UsageError as error:
            raise UsageError(f"{name}: {error}", hint=error.hint) from error

    return named


_READ: dict[str, Callable[[str], Any]] = {
    "interval": lambda text: _number("interval", text, SHORTEST_INTERVAL_S),
    "watch": _rules,
    "cpu_budget": lambda text: _number("cpu_budget", text),
    "group": group_id,
    "store_commands": lambda text: _switch("store_commands", text),
    "prometheus": _address,
    "otlp": _url,
    "fleet": _fleet,
    "fleet_raw": lambda text: _switch("fleet_raw", text),
    **{name: _named(name, parse_bytes) for name in ("fleet_outbox", "database_cap")},
    **{name: _named(name, seconds) for name in ("flush", "keep_raw", "keep_1m", "keep_1h")},
}
"""Setting -> what reads its text, and raises UsageError for a bad one. Those of the store count at
a start only; they are read here so that a reload tells what is wrong."""
