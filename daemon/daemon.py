"""The daemon in the foreground: put together, run until it is told to end, reloaded in between."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan_daemon.agents import AgentServer
from memplan_daemon.budget import CpuBudget
from memplan_daemon.clock import SystemClock
from memplan_daemon.collectors import Collectors, default_collectors
from memplan_daemon.collectors.own import OwnCollector
from memplan_daemon.export import Exporters
from memplan_daemon.loop import Loop
from memplan_daemon.notify import Notifier
from memplan_daemon.proc import ProcFolder, raise_descriptor_limit
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Sampler
from memplan_daemon.server import Server
from memplan_daemon.service import Parts, Service
from memplan_daemon.settings import DaemonSettings
from memplan_daemon.shipping import Shipping
from memplan_daemon.tree import ProcessTable
from memplan_daemon.watching import Watches

from memplan.errors import DaemonError, MemplanError, UsageError
from memplan.store.readonly import shown
from memplan.store.remote import socket_path
from memplan.wire import agent_path

if TYPE_CHECKING:
    from memplan.store.writer import LocalWriter

__all__ = ["run_daemon"]

_log = logging.getLogger("memplan.daemon")

PSS_INTERVAL_S = 60.0
SCAN_S = 5.0
SCAN_SHARE = 500
"""All processes are listed every 5 s, and so that it takes 0.2 % of a core at most."""

LONGEST_ROUND_S = 3600.0
_ENDING = (signal.SIGTERM, signal.SIGINT)


def run_daemon(database: str, read: Callable[[], DaemonSettings]) -> None:
    """Sample into a database until SIGTERM, SIGINT or a request to stop; SIGHUP reloads.

    Args:
        database: its file, or a PostgreSQL URL.
        read: returns the settings; called again at each reload.

    Raises StoreLockedError when another process writes to it, other StoreErrors when it cannot
    be used, DaemonError when a socket cannot be made, and UsageError for a bad setting.
    """
    from memplan.store.engine import sqlite_problem
    from memplan.store.open import local_writer

    settings = read()
    raise_descriptor_limit()
    with _logging(), local_writer(database) as writer:
        if problem := sqlite_problem():
            _log.warning("%s", problem)
        for problem in settings.problems:
            _log.warning("%s", problem)
        daemon = _Daemon(database, writer, settings, read)
        try:
            daemon.run()
        finally:
            daemon.close()


@dataclass(slots=True)
class _Base:
    """What everything else stands on."""

    clock: SystemClock
    collectors: Collectors
    sampler: Sampler
    loop: Loop
    book: RunBook


def _base(database: str, writer: LocalWriter, settings: DaemonSettings) -> _Base:
    clock = SystemClock()
    proc = ProcFolder()
    collectors = default_collectors(clock, pss_interval_s=PSS_INTERVAL_S)

    def counts() -> dict[str, int]:
        return {
            "late_ticks_count": sampler.counts.late_ticks,
            "dropped_samples_count": sampler.dropped,
            "probe_restarts_count": sum(gpu.probe.restarts for gpu in collectors.gpus),
        }

    own = OwnCollector(database=database, counts=counts, probe_cpu_ns=collectors.cpu_ns)
    sampler = Sampler(
        clock=clock,
        collectors=(*collectors.all, own),
        writer=writer,
        interval_s=settings.interval_s,
        host_interval_s=settings.interval_s,
        proc=proc,
        table=ProcessTable(proc, clock, share=SCAN_SHARE, shortest_s=SCAN_S),
        budget=CpuBudget(clock, own.cpu_ns, settings.cpu_share),
        staged=True,
    )
    book = RunBook(writer, clock, store_commands=settings.store_commands)
    return _Base(clock, collectors, sampler, Loop(sampler), book)


class _Daemon:
    """Everything that runs, in the order in which it is closed again."""

    def __init__(
        self,
        database: str,
        writer: LocalWriter,
        settings: DaemonSettings,
        read: Callable[[], DaemonSettings],
    ) -> None:
        self._settings = settings
        self._read = read
        self._notifier = Notifier()
        self._base = base = _base(database, writer, settings)
        self._closing = contextlib.ExitStack()
        self._closing.callback(base.collectors.close)
        self._closing.callback(base.loop.close)
        self._closing.callback(base.sampler.close)
        self._closing.callback(base.book.close)
        try:
            self._open(database, writer)
        except BaseException:
            self._closing.close()
            raise

    def _open(self, database: str, writer: LocalWriter) -> None:
        base, settings = self._base, self._settings
        path = socket_path(database)
        watches = Watches(
            sampler=base.sampler,
            book=base.book,
            proc=ProcFolder(),
            gpu_pids=base.collectors.gpu_pids,
        )
        watches.replace(list(settings.rules))
        agents = AgentServer(
            path=agent_path(path),
            loop=base.loop,
            clock=base.clock,
            sampler=base.sampler,
            book=base.book,
            gid=settings.gid,
        )
        self._closing.callback(agents.close)
        self._shipping = Shipping(
            database=database, writer=writer, loop=base.loop, clock=base.clock
        )
        self._closing.callback(self._shipping.close)
        self._ship(settings)
        parts = Parts(
            watches=watches,
            agents=agents,
            gpus=base.collectors.gpus,
            reload=self._reload_or_raise,
            shipping=self._shipping,
        )
        service = Service(
            writer=writer,
            sampler=base.sampler,
            clock=base.clock,
            database=database,
            kind="daemon",
            stop=base.loop.stop,
            parts=parts,
        )
        server = Server(
            path=path, service=service, loop=base.loop, clock=base.clock, gid=settings.gid
        )
        self._closing.callback(server.close)
        self._watches = watches
        self._exporters = Exporters(base.sampler, base.collectors.gpus)
        self._closing.callback(self._exporters.close)
        try:
            self._exporters.apply(settings.prometheus, settings.otlp)
        except DaemonError as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            _log.error("sampling goes on without: %s (%s)", error, error.hint)
        base.loop.each_round(self._sign_of_life)
        _log.info(
            "sampling every %g s into %s, listening at %s",
            settings.interval_s,
            shown(database),
            path,
        )

    def run(self) -> None:
        """Go round until it is told to end."""
        longest_s = LONGEST_ROUND_S
        if self._notifier.watchdog_s is not None:
            longest_s = self._notifier.watchdog_s / 3
        with _signals(self._base.loop, self._reload):
            self._base.sampler.tick()  # ready means that it works
            gc.collect()
            gc.freeze()  # what was set up stays: no later collection is to look through it
            self._notifier.ready(f"sampling every {self._settings.interval_s:g} s")
            self._base.loop.run(longest_s)
        self._notifier.stopping()
        self._base.sampler.offer([])

    def close(self) -> None:
        """End everything."""
        self._closing.close()
        counts = self._base.sampler.counts  # what waits is written when the store is closed
        _log.info("ended after %d samples", counts.samples_written + counts.samples_waiting)

    def _sign_of_life(self) -> None:
        """Tell the watchdog that the sampler's loop goes round: a sampler that hangs stops it."""
        self._notifier.alive()

    def _reload(self) -> None:
        """Take new settings; bad ones are told and the old ones stay."""
        self._notifier.reloading()
        try:
            self._reload_or_raise()
        except MemplanError as error:
            _log.error("the settings stay as they were: %s", error)
        self._notifier.ready(f"sampling every {self._base.sampler.interval_s:g} s")

    def _ship(self, settings: DaemonSettings) -> None:
        self._shipping.apply(
            settings.fleet, raw=settings.fleet_raw, outbox_bytes=settings.fleet_outbox_bytes
        )

    def _reload_or_raise(self) -> None:
        new = self._read()
        if new.problems:
            raise UsageError(new.problems[0], hint="memplan config show names the files")
        self._exporters.apply(new.prometheus, new.otlp)
        try:
            self._ship(new)
        except MemplanError:
            self._exporters.apply(self._settings.prometheus, self._settings.otlp)
            raise
        self._base.sampler.set_interval(new.interval_s)
        self._watches.replace(list(new.rules))
        self._base.book.store_commands = new.store_commands
        if self._base.sampler.budget is not None:
            self._base.sampler.budget.limit = new.cpu_share
        if new.gid != self._settings.gid:
            _log.warning("another group counts after a restart: memplan daemon stop, then start")
        self._settings = new
        _log.info("reloaded: every %g s, %d rules", new.interval_s, len(new.rules))


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    ours = logging.getLogger("memplan")  # the store's words are the daemon's, too
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


@contextlib.contextmanager
def _signals(loop: Loop, reload: Callable[[], None]) -> Iterator[None]:
    """Let signals end the loop or reload: its wait would go on unless a descriptor wakes it.

    Who runs it in a terminal and closes that wants it to end: SIGHUP reloads only without one.
    """
    awake, wake = socket.socketpair()
    for end in (awake, wake):
        end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    wanted: set[int] = set()

    def woken() -> None:
        with contextlib.suppress(BlockingIOError):
            awake.recv(4096)
        if signal.SIGHUP in wanted:
            wanted.clear()
            reload()

    loop.add(awake, woken)
    old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    ending = (*_ENDING, signal.SIGHUP) if os.isatty(0) else _ENDING
    old = {number: signal.signal(number, lambda *_: loop.stop()) for number in ending}
    if signal.SIGHUP not in old:
        old[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, _: wanted.add(number))
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        loop.remove(awake)
        awake.close()
        wake.close()
