"""Who may do what: by the owner of the process at the other end of a socket, as the kernel says."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan_daemon.clock import NS, Clock
from memplan_daemon.loop import Loop
from memplan_daemon.proc import may_keep
from memplan_daemon.snapshot import Snapshot

from memplan.errors import DaemonError, UsageError

__all__ = ["Door", "Limits", "Peer", "bind", "group_id", "peer_of", "remove_if_ours", "visible"]

_log = logging.getLogger("memplan.daemon")

_CLOSED_S = 1.0
"""Seconds for which nobody is let in after the kernel had no descriptor for a connection."""

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end."""

    pid: int
    """Process id, as this process sees it; 0 when it is in no namespace of ours."""
    uid: int
    """Owner."""

    @property
    def is_owner(self) -> bool:
        """True for the user whose daemon it is, and for root."""
        return self.uid in (os.geteuid(), 0)


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected, by SO_PEERCRED."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return Peer(pid=pid, uid=uid)


def group_id(name: str) -> int | None:
    """Return a group's number; None for no group. Raises UsageError when there is no such group."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise UsageError(f"there is no group {name!r}", hint=f"groupadd --system {name}") from error


class Limits:
    """Connections per user."""

    def __init__(self, most: int, most_each: int) -> None:
        """Set the limits.

        Args:
            most: connections at once.
            most_each: connections of one user at once.
        """
        self._most = most
        self._most_each = most_each
        self._count: Counter[int] = Counter()

    def enter(self, uid: int) -> bool:
        """Count a connection in; False when it would be one too many."""
        if self._count.total() >= self._most or self._count[uid] >= self._most_each:
            return False
        self._count[uid] += 1
        return True

    def leave(self, uid: int) -> None:
        """Count a connection out."""
        self._count[uid] -= 1
        if self._count[uid] <= 0:
            del self._count[uid]


def bind(path: Path, kind: int, gid: int | None) -> socket.socket:
    """Return a socket that listens at a path, for its owner, or for its owner and a group.

    Args:
        path: where; an old socket there is replaced, as its owner must be dead.
        kind: socket.SOCK_STREAM or SOCK_SEQPACKET.
        gid: the group; None = owner only.

    Raises DaemonError when nothing can listen there, or when something else is in the way.
    """
    _prepare(path)
    listener = socket.socket(socket.AF_UNIX, kind)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
            path.chmod(0o660)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise DaemonError(f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    return listener


class Door:
    """Lets connections in, as far as there are descriptors for them besides the sampler's own."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        loop: Loop,
        clock: Clock,
        enter: Callable[[socket.socket], None],
    ) -> None:
        """Open it.

        Args:
            listener: what is listened at.
            loop: waits.
            clock: ends a pause.
            enter: called with each new connection.
        """
        self._listener = listener
        self._loop = loop
        self._clock = clock
        self._enter = enter
        self._again_ns: int | None = None
        self._complained = False
        loop.add(listener, self._knock)
        loop.each_round(self._look)

    def close(self) -> None:
        """Stop to listen."""
        if self._again_ns is None:
            self._loop.remove(self._listener)
        self._again_ns = None
        self._loop.forget(self._look)
        self._listener.close()

    def _knock(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has left again
            return
        except OSError as error:
            self._complain(error.strerror or str(error))
            self._loop.remove(self._listener)
            self._again_ns = self._clock.monotonic_ns() + round(_CLOSED_S * NS)
            return
        if may_keep(peer.fileno()):
            self._enter(peer)
        else:
            self._complain("too few descriptors would be left")
            peer.close()

    def _complain(self, why: str) -> None:
        """Once: whoever knocks all the time must not fill the log."""
        if not self._complained:
            _log.warning("connections are turned away: %s", why)
        self._complained = True

    def _look(self) -> None:
        """Listen again after the pause."""
        if self._again_ns is not None and self._clock.monotonic_ns() >= self._again_ns:
            self._again_ns = None
            self._loop.add(self._listener, self._knock)


def remove_if_ours(path: Path, inode: int) -> None:
    """Remove a socket, unless another one has taken its place."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _prepare(path: Path) -> None:
    """Make the folder and remove a dead socket. Raises DaemonError for anything else there."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = path.parent.stat()
        if path.parent.name == f"memplan-{os.geteuid()}" and (  # the one in the shared /tmp
            folder.st_uid != os.geteuid() or folder.st_mode & 0o022
        ):
            raise DaemonError(
                f"{path.parent} is not ours alone", hint="set XDG_RUNTIME_DIR to a private folder"
            )
        if stat.S_ISSOCK(path.lstat().st_mode):  # of the link itself: never follows one
            path.unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        raise DaemonError(f"cannot listen at {path}: {error.strerror}") from error
    raise DaemonError(f"{path} is in the way: it is no socket", hint="move it elsewhere")


def visible(snapshot: Snapshot, peer: Peer) -> dict[str, Any]:
    """Return a snapshot as one user may see it: own runs in full, those of others added up.

    The host's own readings are everybody's. The owner of the daemon and root see all.
    """
    full = {
        run_id for run_id, info in snapshot.runs.items() if peer.is_owner or info.uid == peer.uid
    }
    values = [
        [run, entity, metric, value]
        for (run, entity, metric), value in snapshot.values.items()
        if run is None or run in full
    ]
    gaps = [
        [run, entity, metric, state]
        for (run, entity, metric), state in snapshot.gaps.items()
        if run is None or run in full
    ]
    others: Counter[str] = Counter()
    for (run, entity, metric), value in snapshot.values.items():
        if run in snapshot.runs and run not in full and _is_total(entity):
            others[f"{entity} {metric}"] += value
    return {
        "t_ns": snapshot.t_ns,
        "values": values,
        "gaps": gaps,
        "runs": {r: {"pid": i.pid, "uid": i.uid} for r, i in snapshot.runs.items() if r in full},
        "others": {"runs": len(snapshot.runs) - len(full), "totals": dict(others)},
    }


def _is_total(entity: str) -> bool:
    return entity == "tree" or entity.endswith("/tree")
