"""`python -m memplan_daemon.shipper DESCRIPTOR`: copies to a fleet's database until told to end.

A process of its own: what it takes to pack rows for a network would hold up the sampler's thread.
It gets one line of JSON first, {"database", "url", "raw"}, so that no password is in a command
line; it says {"upto", "notes", "bytes"} after each batch and waits for an empty line, which says
that the daemon has forgotten it, and {"problem", ...} when one failed. It only reads the database.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from typing import Any

from memplan.errors import MemplanError
from memplan.store.readonly import shown
from memplan.store.ship import Backoff, Shipper

__all__ = ["main"]

PAUSE_S = 10.0
"""Seconds between two looks into an empty outbox."""


def main(descriptor: int, pause_s: float = PAUSE_S) -> None:
    """Ship until the other end is closed.

    Args:
        descriptor: our end of a stream socket.
        pause_s: seconds between two looks into an empty outbox.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the daemon's to handle
    os.nice(10)  # whatever else runs here goes first
    with socket.socket(fileno=descriptor) as peer, peer.makefile("rwb") as stream:
        asked = json.loads(stream.readline())
        shipper = Shipper(asked["database"], asked["url"], raw=asked["raw"])
        backoff = Backoff()
        while True:
            said, wait_s = _step(shipper, backoff, asked["url"])
            stream.write(json.dumps(said, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            if said.get("upto") is not None:
                if not stream.readline():
                    return
                continue
            if _ended(peer, pause_s if wait_s is None else wait_s):
                return


def _step(shipper: Shipper, backoff: Backoff, url: str) -> tuple[dict[str, Any], float | None]:
    """Ship one batch; return what to say, and how long to wait after a failure."""
    try:
        done = shipper.step()
    except MemplanError as error:
        problem = str(error).replace(url, shown(url))
        said = {"problem": problem, "notes": shipper.waiting[0], "bytes": shipper.waiting[1]}
        return said, backoff.failed()
    backoff.succeeded()
    return {"upto": done.upto, "notes": done.waiting[0], "bytes": done.waiting[1]}, None


def _ended(peer: socket.socket, wait_s: float) -> bool:
    """Wait; tell whether the other end was closed meanwhile."""
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), *map(float, sys.argv[2:]))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)
