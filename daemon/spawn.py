"""Starting a command as a child, waiting for it, and passing signals on to it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

from memplan_daemon.proc import kib_fields, read_at

from memplan.errors import MemplanError

__all__ = ["Child", "CommandNotFoundError", "Ended", "SpawnError", "held_signals"]

_FROM_KERNEL = 0x80
"""si_code of a signal that the terminal sent, to the whole foreground process group."""

_STOP = signal.SIGTSTP
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    _STOP,
)


class SpawnError(MemplanError):
    """The command cannot be started; the exit code is a shell's."""

    exit_code = 126


class CommandNotFoundError(SpawnError):
    """There is no such program."""

    exit_code = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child ended."""

    exit_code: int
    """Its exit code, 128 + signal when it was killed."""
    hwm_bytes: int | None
    """The highest RSS of the child, or of one child that it waited for: the kernel's ru_maxrss.
    None where that tells nothing: exec hands the mark of the memory it replaces, which is that of
    the process that started the child, on to it, so only a higher one is its own."""


@contextlib.contextmanager
def held_signals() -> Iterator[set[signal.Signals | int]]:
    """Keep signals waiting until `Child.pass_signals` takes them; yields the mask from before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        yield set(before)
    finally:
        while signal.sigtimedwait(_PASSED_ON, 0) is not None:
            pass  # they were meant for a child that has ended
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A running command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        mask: set[signal.Signals | int],
    ) -> None:
        """Start it, with our own standard streams, in our own process group.

        Args:
            command: program and arguments; the program is looked up in PATH.
            environment: its environment variables.
            mask: the signals that were blocked before `held_signals`.

        Raises SpawnError when it cannot be started.
        """
        self._own_mark_kib = _own_mark_kib()
        try:
            self.pid = os.posix_spawnp(
                command[0],
                list(command),
                dict(environment),
                setsigmask=mask,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python itself ignores these
            )
        except (OSError, ValueError) as error:
            raise _spawn_error(command[0], error) from error
        self.exited: int | None = None
        """Descriptor that is readable once the child has ended; None where the kernel has none."""
        with contextlib.suppress(OSError):
            self.exited = os.pidfd_open(self.pid)

    def poll(self) -> Ended | None:
        """Return how the child ended, or None while it runs."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        own = usage.ru_maxrss > self._own_mark_kib
        return Ended(
            exit_code=128 - code if code < 0 else code,
            hwm_bytes=usage.ru_maxrss * 1024 if own else None,
        )

    def pass_signals(self) -> None:
        """Pass on the signals that wait, but what a terminal sent has reached the child already."""
        while (info := signal.sigtimedwait(_PASSED_ON, 0)) is not None:
            if info.si_code != _FROM_KERNEL or not self._shares_terminal():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, info.si_signo)
            if info.si_signo == _STOP:
                os.kill(os.getpid(), signal.SIGSTOP)  # the shell waits for us, not for the child

    def _shares_terminal(self) -> bool:
        try:
            return os.getpgid(self.pid) == os.getpgrp()
        except ProcessLookupError:
            return True

    def close(self) -> None:
        """Give the descriptor back."""
        if self.exited is not None:
            os.close(self.exited)
            self.exited = None


def _own_mark_kib() -> int:
    """Return the highest RSS of this process in KiB: what a child will inherit.

    That is VmHWM, not our own ru_maxrss, which may be inherited itself.
    """
    mark = kib_fields(read_at("/proc/self/status") or b"").get("VmHWM")
    return getrusage(RUSAGE_SELF).ru_maxrss if mark is None else mark // 1024


def _spawn_error(program: str, error: OSError | ValueError) -> SpawnError:
    if not isinstance(error, OSError):
        return SpawnError(f"{program!r} cannot be started: {error}")
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return SpawnError(f"{program}: {error.strerror}")
    reason = error.strerror if "/" in program else "command not found"
    return CommandNotFoundError(f"{program}: {reason}")
