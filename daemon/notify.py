"""Telling a service manager how the daemon is: systemd's notification protocol, by sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time

__all__ = ["Notifier"]


class Notifier:
    """Sends READY, RELOADING, WATCHDOG and STOPPING; without a manager nothing happens."""

    def __init__(self) -> None:
        """Learn from the environment whom to tell, and how often the watchdog wants a sign."""
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        wanted = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(wanted) / 1e6 if wanted.isdigit() and mine else None
        """Seconds without a sign after which the manager kills us; None = it does not watch."""

    def ready(self, status: str) -> None:
        """We are up (or have reloaded)."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """We read the settings again; `ready` follows."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The sampler loop goes round."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):  # Linux's abstract names begin with a zero byte
            address = "\0" + address[1:]
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
        ):
            peer.sendto(text.encode(), address)
