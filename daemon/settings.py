"""The daemon's settings: read together, checked together, so that a bad one changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from memplan_daemon.access import group_id
from memplan_daemon.watching import Rule, parse_rule

from memplan import config
from memplan.errors import UsageError
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


def read_settings(
    *, interval_s: float | None = None, rules: tuple[str, ...] = ()
) -> DaemonSettings:
    """Return the settings in force.

    Args:
        interval_s: from the command line; None = as set.
        rules: from the command line, besides those that are set.

    Raises UsageError for one that makes no sense, with its name.
    """
    values = {value.setting.name: value.value for value in config.load()}
    wanted = (*values["watch"].replace(",", " ").split(), *rules)
    return DaemonSettings(
        interval_s=_number("interval", values["interval"]) if interval_s is None else interval_s,
        rules=tuple(parse_rule(text) for text in wanted),
        cpu_share=_number("cpu_budget", values["cpu_budget"]) / 100,
        gid=group_id(values["group"]),
        store_commands=_switch("store_commands", values["store_commands"]),
        prometheus=_address(values["prometheus"]),
        otlp=_url(values["otlp"]),
        fleet=_fleet(values["fleet"]),
        fleet_raw=_switch("fleet_raw", values["fleet_raw"]),
        fleet_outbox_bytes=parse_bytes(values["fleet_outbox"]),
    )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"{name} is not a number: {text!r}", hint="memplan config show") from error
    if not 0 <= value <= 86400:
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
