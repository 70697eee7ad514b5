"""Writing through the process that holds the database: the wire format and its client.

A request is one frame: four bytes of length (big endian), then that many bytes of JSON, an object
with "op" and its arguments. Each request gets one frame back: {"ok": true, "result": ...} or
{"ok": false, "error": {"type": ..., "message": ..., "hint": ...}}. The server's side is
`memplan_daemon.server`; this module needs no SQL, so that measured programs can load it cheaply.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from memplan import errors
from memplan.errors import DaemonError, MemplanError, StoreError
from memplan.serialize import from_dict, to_dict
from memplan.types import Device, Event, Phase, Plan, Run, Sample

__all__ = [
    "MAX_FRAME_BYTES",
    "DaemonClient",
    "FrameBuffer",
    "RemoteWriter",
    "encode_frame",
    "error_body",
    "socket_path",
]

MAX_FRAME_BYTES = 16 * 1024**2
"""Largest JSON text of one request or reply."""

SAMPLES_PER_REQUEST = 50_000
"""Samples in one request: some 5 MB of JSON, well below the largest frame."""

_LENGTH = struct.Struct(">I")
_MAX_SOCKET_PATH = 107
"""Linux's sun_path holds 108 bytes, the last of them zero."""


def socket_path(database: str | Path) -> Path:
    """Return where the process that writes to a database listens.

    It is "<database>.sock" beside the file. Where that is longer than a socket's address may be,
    or the database is a URL, it is a name made of the database's hash in the runtime folder.
    """
    name = str(database)
    if "://" not in name:
        name = os.path.abspath(Path(name).expanduser())  # noqa: PTH100 - resolve() follows links
        if len(os.fsencode(name)) + len(".sock") <= _MAX_SOCKET_PATH:
            return Path(name + ".sock")
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
    return _runtime_folder() / f"{digest}.sock"


def _runtime_folder() -> Path:
    """Return a short folder of this user's: $XDG_RUNTIME_DIR/memplan, else one in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and len(os.fsencode(runtime)) < _MAX_SOCKET_PATH - 48:
        return Path(runtime) / "memplan"
    folder = Path(tempfile.gettempdir())
    if len(os.fsencode(folder)) >= _MAX_SOCKET_PATH - 64:
        folder = Path("/tmp")  # noqa: S108 - the server makes the folder 0700 and checks its owner
    return folder / f"memplan-{os.geteuid()}"


def encode_frame(body: Any) -> bytes:
    """Return a JSON value as one frame. Raises StoreError when it is too large."""
    text = json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_FRAME_BYTES:
        raise StoreError(
            f"a message of {len(data)} bytes is too large for the daemon's socket",
            hint="stop the daemon and try again: memplan daemon stop",
        )
    return _LENGTH.pack(len(data)) + data


def error_body(error: MemplanError) -> dict[str, Any]:
    """Return the reply that says what went wrong."""
    detail = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
    return {"ok": False, "error": detail}


class FrameBuffer:
    """Collects bytes and cuts them into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        """Return the bytes that wait for the rest of their frame."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add bytes as they arrive."""
        self._data += data

    def take(self) -> bytes | None:
        """Return the next whole frame's JSON text, or None while it is incomplete.

        Raises DaemonError when a frame announces more than MAX_FRAME_BYTES: what follows cannot
        be told apart any more, so the connection is to be closed.
        """
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_FRAME_BYTES:
            raise DaemonError(f"a message of {length} bytes is larger than {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        frame = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return frame


class DaemonClient:
    """One connection to the process that holds a database; made anew after a failure."""

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        """Remember where to connect.

        Args:
            path: the socket, as `socket_path` gives it.
            timeout_s: seconds after which a silent peer counts as gone.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = FrameBuffer()

    def request(self, op: str, **arguments: Any) -> Any:
        """Send one request and return its result.

        Raises DaemonError when nobody answers, and the error that the peer reports.
        """
        frame = encode_frame({"op": op, **arguments})
        try:
            reply = self._exchange(frame)
        except OSError as error:
            self.close()
            raise DaemonError(
                f"nobody answers at {self._path} ({error.strerror or error})",
                hint="memplan daemon status",
            ) from error
        except MemplanError:
            self.close()
            raise
        return _result(reply)

    def _exchange(self, frame: bytes) -> bytes:
        connection = self._connect()
        connection.sendall(frame)
        while (reply := self._buffer.take()) is None:
            data = connection.recv(65536)
            if not data:
                raise ConnectionResetError("the connection was closed")
            self._buffer.feed(data)
        return reply

    def _connect(self) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(str(self._path))
            except OSError:
                connection.close()
                raise
            self._socket, self._buffer = connection, FrameBuffer()
        return self._socket

    def status(self) -> dict[str, Any]:
        """Return what the peer says about itself: pid, kind, counts. Raises DaemonError."""
        return cast("dict[str, Any]", self.request("status"))

    def stop(self) -> None:
        """Ask a daemon to end. Raises DaemonError."""
        self.request("stop")

    def watch(self, pid: int, run_id: str) -> None:
        """Ask for samples of a process tree under a run's name. Raises DaemonError."""
        self.request("watch", pid=pid, run_id=run_id)

    def unwatch(self, run_id: str) -> None:
        """Take a `watch` back. Raises DaemonError."""
        self.request("unwatch", run_id=run_id)

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close the connection."""
        self.close()


def _result(reply: bytes) -> Any:
    try:
        body = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise DaemonError(f"the daemon's answer is not JSON: {error}") from error
    if not isinstance(body, dict) or "ok" not in body:
        raise DaemonError("the daemon's answer makes no sense")
    if body["ok"]:
        return body.get("result")
    raise _remote_error(body.get("error"))


def _remote_error(detail: Any) -> MemplanError:
    """Return the peer's error as the same class here (DaemonError when it is not known)."""
    if not isinstance(detail, dict):
        return DaemonError("the daemon refused and did not say why")
    kind = getattr(errors, str(detail.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, MemplanError)):
        kind = DaemonError
    return kind(str(detail.get("message")), hint=str(detail.get("hint") or ""))


class RemoteWriter:
    """A `memplan.store.base.Writer` whose work is done by the process behind a socket.

    Every method raises DaemonError when that process is gone, or the StoreError that it reports.
    A run that was saved as "running" and whose connection breaks is marked "lost" over there.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        """Connect and check that somebody answers. Raises DaemonError.

        Args:
            path: the socket, as `socket_path` gives it.
            timeout_s: seconds to wait for each answer.
        """
        self._client = DaemonClient(path, timeout_s=timeout_s)
        self._client.request("ping")

    def save_plan(self, plan: Plan) -> Plan:
        """Store a plan under a new id (kept if it has one) and return it with that id."""
        return from_dict(self._client.request("save_plan", plan=to_dict(plan)), Plan)

    def save_run(self, run: Run) -> None:
        """Insert a run, or replace the stored one with the same id."""
        self._client.request("save_run", run=to_dict(run))

    def delete_run(self, run_id: str) -> bool:
        """Delete a run with all that belongs to it; tell whether to call again for the rest."""
        return bool(self._client.request("delete_run", run_id=run_id))

    def save_phases(self, phases: Sequence[Phase]) -> None:
        """Insert phases; one with the same run, pid, name and start replaces the stored one."""
        self._client.request("save_phases", phases=to_dict(list(phases)))

    def save_devices(self, devices: Sequence[Device]) -> None:
        """Remember devices by name and uuid."""
        self._client.request("save_devices", devices=to_dict(list(devices)))

    def save_events(self, events: Sequence[Event]) -> None:
        """Append events; one that is stored already (same time, kind, thing) is left as it is."""
        self._client.request("save_events", events=to_dict(list(events)))

    def stage_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch: it is the process behind the socket that may hold samples back."""
        self.write_samples(samples)

    def flush(self) -> None:
        """Do nothing: this side holds nothing back."""

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch; one larger than SAMPLES_PER_REQUEST is committed in several parts."""
        rows = [
            (s.series.run_id, s.series.entity, s.series.metric, s.t_ns, s.value) for s in samples
        ]
        for start in range(0, len(rows), SAMPLES_PER_REQUEST):
            part = rows[start : start + SAMPLES_PER_REQUEST]
            self._client.request("write_samples", samples=part)

    def close(self) -> None:
        """Close the connection; calling it twice is harmless."""
        self._client.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()
