"""What an agent inside a program and the daemon say to each other.

An agent connects to a SEQPACKET socket beside the daemon's own and sends packets of JSON, one
object each, without waiting for answers. The kernel vouches for its process id and owner, also
from inside a container with ids of its own. The daemon answers the hello only, with {"run": ID}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.errors import DaemonError

__all__ = ["MAX_PACKET_BYTES", "VERSION", "agent_path", "decode", "encode", "job_of"]

VERSION = 1
"""Of the packets; another one is refused."""

MAX_PACKET_BYTES = 64 * 1024
"""Largest packet."""

_KINDS = ("hello", "sample", "event", "workload", "quiet")

_MASTERS = ("MASTER_ADDR", "MASTER_PORT")


def agent_path(socket: str | Path) -> Path:
    """Return where agents connect, from where the daemon listens for commands."""
    return Path(socket).with_suffix(".peer")


def encode(kind: str, **body: Any) -> bytes:
    """Return one packet. Raises DaemonError when it is too large."""
    text = json.dumps({"v": VERSION, "kind": kind, **body}, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_PACKET_BYTES:
        raise DaemonError(f"a packet of {len(data)} bytes is larger than {MAX_PACKET_BYTES}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Return a packet's object. Raises DaemonError for what is none, or of another version."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DaemonError(f"a packet is not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("v") != VERSION or body.get("kind") not in _KINDS:
        raise DaemonError("a packet makes no sense, or is of another version")
    return body


def job_of(environ: Mapping[str, str]) -> str | None:
    """Return what the ranks of one job have in common, from one rank's environment.

    torchrun's run id, unless it is the default that every job has; Slurm's job and step; Ray's
    job; MPI's namespace; else the address at which torch.distributed meets. None = no job.
    """
    if environ.get("TORCHELASTIC_RUN_ID", "none") != "none":
        return f"torchrun:{environ['TORCHELASTIC_RUN_ID']}"
    if "SLURM_JOB_ID" in environ:
        return f"slurm:{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', '0')}"
    for name, word in (("RAY_JOB_ID", "ray"), ("PMIX_NAMESPACE", "mpi")):
        if name in environ:
            return f"{word}:{environ[name]}"
    if all(name in environ for name in _MASTERS):
        return "master:" + ":".join(environ[name] for name in _MASTERS)
    return None
