"""`python -m memplan_daemon.probe BACKEND DESCRIPTOR`: answers until the daemon closes its end.

A request is {"id": N, "groups": [...]}, the answer {"id": N, "state": ..., ...}; of each GPU it has
what is new since the last answer to the same groups. Imports as little as it can: its memory
counts as the daemon's.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

from memplan_daemon.probe.fields import Told

__all__ = ["main"]


def _backend(name: str) -> Any:
    if name == "amd":
        from memplan_daemon.probe.amd import AmdBackend

        return AmdBackend()
    from memplan_daemon.probe.nvml import NvmlBackend

    return NvmlBackend()


def main(name: str, descriptor: int) -> None:
    """Serve one backend.

    Args:
        name: "nvml" or "amd".
        descriptor: our end of a stream socket.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the daemon's to handle
    backend, told = _backend(name), Told()
    decode, encode = json.JSONDecoder().raw_decode, json.JSONEncoder(separators=(",", ":")).encode
    with open(descriptor, "rb") as questions, open(descriptor, "wb", closefd=False) as answers:
        for line in questions:
            request, _ = decode(line.decode())
            groups, begun_ns = frozenset(request["groups"]), time.monotonic_ns()
            reply = {"id": request["id"], **backend.read(groups)}
            reply["took_ns"] = time.monotonic_ns() - begun_ns
            reply["gpus"] = told.news(groups, reply["gpus"])
            answers.write(encode(reply).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)
