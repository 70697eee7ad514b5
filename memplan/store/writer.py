"""The one who writes: plans, runs, phases, devices, events, samples."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import sqlalchemy
from sqlalchemy import delete

from memplan.errors import NotStoredError, StoreError
from memplan.serialize import dumps
from memplan.store import erase, life, outbox, tables
from memplan.store.batch import Instant, Instants
from memplan.store.connection import LOG_CAP_BYTES, WriterConnection
from memplan.store.engine import driver, translated
from memplan.store.identity import host_identity, new_id
from memplan.store.partition import Partitions
from memplan.store.quarantine import Rescue
from memplan.store.retention import Policy
from memplan.store.ring import Ring
from memplan.store.upsert import insert_new, replace_rows
from memplan.types import Device, Event, Phase, Plan, Run, Sample

__all__ = ["LocalWriter", "new_id"]

_log = logging.getLogger("memplan.store")

RING_SAMPLES = 100_000
"""Staged samples that are kept at the most (some 10 MB); beyond, the oldest go."""

PART_SAMPLES = 5000
"""Staged samples that are written in one transaction."""

_KEEP_HOUSE_S = 60.0
"""Seconds between two looks for what is too old."""


class LocalWriter:
    """Implements `memplan.store.base.Writer` on a database that nobody else writes to."""

    def __init__(
        self,
        database: str | Path,
        *,
        flush_s: float = 0.0,
        policy: Policy | None = None,
        outbox_bytes: int = 0,
        log_cap_bytes: int = LOG_CAP_BYTES,
        identity: tuple[str, str] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the lock, create or migrate the database, and mark broken-off runs as lost.

        A file that is ours but damaged is put aside, and what can be saved moves into a new one.

        Args:
            database: an SQLite file, or a PostgreSQL URL.
            flush_s: seconds that staged samples may wait in memory.
            policy: how long what is kept.
            outbox_bytes: packed bytes that may wait for a fleet's database; 0 = there is none.
            log_cap_bytes: longest write-ahead log.
            identity: (key, name) of this machine; None = as `host_identity` finds them.
            now_ns: the wall clock.
            monotonic_s: the clock of flushes and housekeeping.

        Raises StoreLockedError when another process writes, StoreVersionError when the database
        is newer than this program, StoreDamagedError when it is none, StoreError otherwise.
        """
        self._flush_s = flush_s
        self._outbox_bytes = outbox_bytes
        self._now_ns, self._monotonic_s = now_ns, monotonic_s
        self._staged = Ring()
        self._partitions = Partitions()
        self.dropped = 0
        """Staged samples that were given up because the store refused them for too long."""
        self.outbox_lost = 0
        """Notes that were given up because a fleet's database could not be reached for long."""
        self._core = WriterConnection(
            database, policy or Policy(), log_cap_bytes, identity or host_identity()
        )
        self._open = True
        self._flushed_s = self._kept_house_s = monotonic_s()
        self._busy = False
        try:
            self._begin_life()
        except StoreError:
            self._core.close()
            raise

    @property
    def degraded(self) -> str:
        """Why the store takes nothing at the moment; empty while all is well."""
        return self._core.degraded

    @property
    def waiting(self) -> int:
        """Staged samples that wait in memory."""
        return self._staged.samples

    @property
    def longest_batch_s(self) -> float:
        """Longest transaction of housekeeping so far, in seconds by the clock."""
        return self._core.retention.longest_s

    @property
    def longest_checkpoint_s(self) -> float:
        """Longest checkpoint so far, in seconds by the clock: it waits for the disk, lock-free."""
        return self._core.longest_checkpoint_s

    def _begin_life(self) -> None:
        self._tell_rescue()
        with self._core.begin() as connection:
            self._fill_outbox(connection)
            for run in life.lost_runs(connection, self._core.host_id):
                self._put_run(connection, run)
            gap = life.gap(connection, self._core.host_id, self._now_ns())
            mark = {"key": life.mark(self._core.host_id), "value": str(self._now_ns())}
            replace_rows(connection, tables.meta, [mark])
        if gap is not None:
            self.save_events([gap])

    def _fill_outbox(self, connection: sqlalchemy.Connection) -> None:
        """Note what came while nothing was noted; without a fleet, remember that nothing is."""
        begin = outbox.fill if self._outbox_bytes else outbox.leave
        begin(connection, self._core.host_id)

    def _tell_rescue(self) -> None:
        """Store and log, once, what became of a damaged file: nobody is to look for it in vain."""
        rescue, self._core.rescued = self._core.rescued, None
        if rescue is not None:
            event = rescue.event(self._now_ns())
            _log.error("%s", event.message)
            self.save_events([event])

    def save_plan(self, plan: Plan) -> Plan:
        """Store a plan under a new id (kept if it has one) and return it with that id."""
        stored = plan if plan.id else replace(plan, id=new_id("p"))
        row = {
            "id": stored.id,
            "created_ns": stored.created_ns,
            "model_name": stored.model.name,
            "fits": stored.verdict.fits,
            "document": dumps(stored, indent=None),
        }
        self._save(tables.plan, [row], durable=True)
        return stored

    def save_run(self, run: Run) -> None:
        """Insert a run, or replace the stored one with the same id."""
        self._core.write(lambda connection: self._put_run(connection, run))
        if run.status != "running" and run.id in self._core.log.waiting():
            with contextlib.suppress(StoreError):  # its ticks are safe, and packed later
                self._pack(run.id)

    def _put_run(self, connection: sqlalchemy.Connection, run: Run) -> None:
        row = {
            "id": run.id,
            "plan_id": run.plan_id,
            "host": run.host,
            "pid": run.pid,
            "started_ns": run.started_ns,
            "ended_ns": run.ended_ns,
            "exit_code": run.exit_code,
            "status": run.status,
            "document": dumps(run, indent=None),
        }
        self._put(connection, tables.run, [row])

    def save_phases(self, phases: Sequence[Phase]) -> None:
        """Insert phases; one with the same run, pid, name and start replaces the stored one."""
        rows = [
            {
                "run_id": phase.run_id,
                "pid": phase.pid,
                "name": phase.name,
                "started_ns": phase.started_ns,
                "ended_ns": phase.ended_ns,
                "document": dumps(phase, indent=None),
            }
            for phase in phases
        ]
        self._save(tables.phase, rows)

    def save_devices(self, devices: Sequence[Device]) -> None:
        """Remember devices by name and uuid."""
        rows = [
            {"name": d.name, "uuid": d.uuid or "", "document": dumps(d, indent=None)}
            for d in devices
        ]
        self._save(tables.device, rows)

    def save_events(self, events: Sequence[Event]) -> None:
        """Append events; one that is stored already (same time, kind, thing) is left as it is."""
        rows = [
            {
                "host_id": self._core.host_id,
                "t_ns": event.t_ns,
                "kind": event.kind,
                "run_id": event.run_id or tables.HOST_RUN,
                "entity": event.entity or "",
                "severity": event.severity,
                "document": dumps(event, indent=None),
            }
            for event in events
        ]

        def insert_them(connection: sqlalchemy.Connection) -> None:
            insert_new(connection, tables.event, rows)
            self._note(connection, "event", [outbox.key(tables.event, row) for row in rows])

        self._core.write(insert_them, durable=True)

    def _save(
        self, table: sqlalchemy.Table, rows: list[dict[str, Any]], *, durable: bool = False
    ) -> None:
        if rows:
            self._core.write(lambda connection: self._put(connection, table, rows), durable=durable)

    def _put(
        self, connection: sqlalchemy.Connection, table: sqlalchemy.Table, rows: list[dict[str, Any]]
    ) -> None:
        rows = [{"host_id": self._core.host_id, **row} for row in rows]
        replace_rows(connection, table, rows)
        self._note(connection, table.name, [outbox.key(table, row) for row in rows])

    def _note(
        self, connection: sqlalchemy.Connection, kind: str, keys: Sequence[str], size: int = 256
    ) -> None:
        """Put into the outbox what the fleet's database is to get."""
        if self._outbox_bytes and keys:
            outbox.note(connection, kind, keys, size)

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch, behind what was staged. A clock that jumps back loses nothing."""
        while self._staged.samples > PART_SAMPLES:  # a long ring goes in parts, and fails early
            part = self._staged.oldest(PART_SAMPLES)
            self._append(part)
            self._staged.forget(len(part))
        batch = [*self._staged, *Instants.of(samples).instants]
        if batch:
            self._append(batch)
            self._staged.forget(len(self._staged))
            self._flushed_s = self._monotonic_s()
            self._after_write()

    def _append(self, batch: list[Instant]) -> None:
        self._core.write(lambda connection: self._core.log.append(connection, batch))

    def stage_samples(self, samples: Sequence[Sample]) -> None:
        """Append a batch that may wait in memory, flush_s long; never raises StoreError."""
        self.dropped += self._staged.add(samples, RING_SAMPLES)
        if self._monotonic_s() - self._flushed_s >= self._flush_s:
            with contextlib.suppress(StoreError):  # `degraded` tells it; the ring keeps them
                self.flush()

    def flush(self) -> None:
        """Commit what was staged. Raises StoreError when the store refuses; nothing is lost."""
        self.write_samples(())

    def _after_write(self) -> None:
        """Pack what is enough for a block; now and then delete what is too old."""
        with contextlib.suppress(StoreError):  # the samples are safe: it is done later
            self._tell_rescue()
            for run_id in self._core.log.due():
                self._pack(run_id)
            if self._busy or self._monotonic_s() - self._kept_house_s >= _KEEP_HOUSE_S:
                self._kept_house_s = self._monotonic_s()
                self._busy = self.keep_house(batches=1)

    def _pack(self, run_id: str) -> None:
        if self._core.path is None:
            with self._core.begin() as connection:
                times = self._core.log.times(connection, run_id)
            with self._core.begin() as connection:
                self._partitions.ensure(connection, times)

        def close(connection: sqlalchemy.Connection) -> None:
            for block in self._core.log.close_run(connection, run_id):
                self._note(connection, "block", [outbox.block_key(block)], block["size_bytes"])

        self._core.write(close)

    def keep_house(self, *, batches: int = 1_000_000) -> bool:
        """Delete what is too old or too much, in short transactions; tell if more is to do.

        Args:
            batches: how many at the most, of some 30 ms each.
        """
        if self._outbox_bytes:
            with self._core.begin() as connection:
                self.outbox_lost += outbox.trim(connection, self._outbox_bytes)
        if self._core.path is None:
            self._drop_partitions()
        with self._core.checkpoints_apart() as pause:
            for _ in range(batches):
                if not self._core.retention.batch(self._core.connection, self._now_ns()):
                    return False
                pause()
        return True

    def _drop_partitions(self) -> None:
        policy, now = self._core.policy, self._now_ns()
        with self._core.begin() as connection:
            self._partitions.drop(connection, "chunk", now - policy.raw_ns)
            self._partitions.drop(connection, "rollup_1m", now - policy.minute_ns)

    def shipped(self, upto: int) -> None:
        """Forget what the fleet's database has got: everything up to a number of the outbox."""
        self._core.write(lambda connection: outbox.forget(connection, upto))

    def note_for_fleet(self, outbox_bytes: int) -> None:
        """Note from now on what a fleet's database is to get, as many bytes of it; 0 = nothing."""
        if bool(outbox_bytes) != bool(self._outbox_bytes):
            self._outbox_bytes = outbox_bytes
            self._core.write(self._fill_outbox)
        self._outbox_bytes = outbox_bytes

    def delete_run(self, run_id: str) -> bool:
        """Delete a run with all that belongs to it; tell whether to call again for the rest.

        From the first call on it is in no list any more, even if there is no other one: what is
        left goes with the housekeeping. A plan stays.

        Raises NotStoredError when there is no such run, UsageError while it is running.
        """
        with self._core.begin() as connection:
            known = bool(erase.erased(connection, [run_id]))
            there = known or erase.is_there(connection, run_id)
        if not there:
            raise NotStoredError(f"there is no run {run_id!r}", hint="memplan runs")
        if not known:

            def begin(connection: sqlalchemy.Connection) -> None:
                erase.begin(connection, run_id)
                self._note(connection, "erased", [json.dumps(run_id)])

            self._core.write(begin, durable=True)
            self._core.log.forget(run_id)
        with self._core.checkpoints_apart() as pause:
            more = self._core.retention.erase(self._core.connection)
            pause()
        return more

    def take_over(self, rescue: Rescue) -> None:
        """Move what is sound of a database that was put aside into this one, and tell it."""
        self._core.take_over(rescue)
        self.save_events([rescue.event(self._now_ns())])

    def checkpoint(self) -> None:
        """Move the log into the file, as far as readers allow."""
        self._core.checkpoint("TRUNCATE")

    def vacuum(self) -> None:
        """Pack the file anew, without free pages."""
        if self._core.path is not None:
            with translated(self._core.database):
                driver(self._core.connection).execute("VACUUM")
            self._core.checkpoint("TRUNCATE")

    def close(self) -> None:
        """Flush, pack ended runs, give the connection and the lock back; twice is harmless."""
        if not self._open:
            return
        self._open = False
        try:
            with contextlib.suppress(StoreError):
                self.flush()
                for run_id in self._core.log.waiting():
                    if run_id != tables.HOST_RUN:
                        self._pack(run_id)
                mark = tables.meta.c.key == life.mark(self._core.host_id)
                self._core.write(lambda c: c.execute(delete(tables.meta).where(mark)))
        finally:
            self._core.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *details: object) -> None:
        """Close."""
        self.close()
