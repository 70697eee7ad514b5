"""How long what is kept: raw samples, minutes, hours, and a cap on the whole file.

Whatever goes, goes in batches of some thirty milliseconds, so that no sample waits. Events, plans,
phases and peaks stay until their run is deleted; what a deleted run leaves behind goes first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import delete, func, select

from memplan.store import erase, tables
from memplan.store.engine import driver
from memplan.store.frame import HOUR_NS, MINUTE_NS
from memplan.store.partition import DAY_NS

__all__ = ["BATCH_S", "Policy", "Retention"]

BATCH_S = 0.03
"""Seconds that one transaction may take."""

_VACUUM_PAGES = 256
"""Free pages that are left in the file for what comes next, and that one vacuum gives back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is kept."""

    raw_ns: int = 48 * HOUR_NS
    """Age up to which samples are kept."""
    minute_ns: int = 30 * DAY_NS
    """Age up to which roll-ups of a minute are kept."""
    hour_ns: int = 730 * DAY_NS
    """Age up to which roll-ups of an hour are kept."""
    cap_bytes: int = 1024**3
    """Bytes of the database beyond which the oldest go early: samples, then minutes."""


Begin = Callable[[], AbstractContextManager[sqlalchemy.Connection]]


class Retention:
    """Deletes what is too old, one batch at a call."""

    def __init__(self, begin: Begin, host_id: int, policy: Policy) -> None:
        """Set up.

        Args:
            begin: opens a transaction of the writer.
            host_id: whose rows.
            policy: what is kept.
        """
        self._begin = begin
        self._host_id = host_id
        self._policy = policy
        self._blocks, self._periods = 1, 1
        self._parts: dict[erase.Kind, int] = {"blocks": 1, "minutes": 1, "series": 8}
        self._step = 0
        self.longest_s = 0.0
        """Longest transaction so far."""
        self._begun_s = 0.0

    def batch(self, connection: sqlalchemy.Connection, now_ns: int) -> bool:
        """Delete or give back one batch; tell whether there is more to do.

        One kind after the other: what is done with is not looked at again until all are.
        """
        policy = self._policy
        steps = (
            self._erase,
            lambda: self._drop_blocks(tables.block.c.t1_ns < now_ns - policy.raw_ns),
            lambda: self._drop_periods(tables.rollup_1m, (now_ns - policy.minute_ns) // MINUTE_NS),
            lambda: self._drop_periods(tables.rollup_1h, (now_ns - policy.hour_ns) // HOUR_NS),
            lambda: self._over_cap(connection) and self.drop_oldest(),
            lambda: self._give_back(connection),
        )
        while self._step < len(steps):
            if steps[self._step]():
                return True
            self._step += 1
        self._step = 0
        return False

    def erase(self, connection: sqlalchemy.Connection) -> bool:
        """Delete one batch of what deleted runs left, or give it back; tell if there was any."""
        return self._erase() or self._give_back(connection)

    def drop_oldest(self) -> bool:
        """Delete the oldest blocks, where there are none the oldest minutes; tell if any."""
        return self._drop_blocks(sqlalchemy.true()) or self._drop_periods(tables.rollup_1m, 2**31)

    def _erase(self) -> bool:
        """Delete a part of what is left of a run that was deleted; tell if there was one."""
        self._start()
        with self._begin() as connection:
            run_id = erase.pending(connection)
            if run_id is None:
                return False
            kind = erase.step(connection, run_id, self._parts)
        if kind is not None:
            self._parts[kind] = self._adapt(self._parts[kind], self._stop())
        return True

    def _drop_blocks(self, which: sqlalchemy.ColumnElement[bool]) -> bool:
        b, c = tables.block.c, tables.chunk.c
        query = select(b.id, b.day).where(b.host_id == self._host_id, which).order_by(b.id)
        self._start()
        with self._begin() as connection:
            rows = connection.execute(query.limit(self._blocks)).all()
            for number, day in rows:
                connection.execute(
                    delete(tables.chunk).where(
                        c.host_id == self._host_id, c.day == day, c.block_id == number
                    )
                )
                connection.execute(
                    delete(tables.block).where(b.host_id == self._host_id, b.id == number)
                )
        self._blocks = self._adapt(self._blocks, self._stop())
        return bool(rows)

    def _drop_periods(self, table: sqlalchemy.Table, before: int) -> bool:
        c = table.c
        self._start()
        with self._begin() as connection:
            first = connection.execute(
                select(func.min(c.period)).where(c.host_id == self._host_id)
            ).scalar()
            if first is None or first >= before:
                return False
            end = min(first + self._periods, before)
            connection.execute(delete(table).where(c.host_id == self._host_id, c.period < end))
        self._periods = self._adapt(self._periods, self._stop())
        return True

    def _start(self) -> None:
        self._begun_s = time.perf_counter()

    def _stop(self) -> float:
        """Return the seconds since `_start`, and remember the longest."""
        took_s = time.perf_counter() - self._begun_s
        self.longest_s = max(self.longest_s, took_s)
        return took_s

    @staticmethod
    def _adapt(size: int, took_s: float) -> int:
        """Return the size of the next batch: half when this one took long, twice when short."""
        if took_s > BATCH_S * 0.6:
            return max(size // 2, 1)
        return min(size * 2, 512) if took_s < BATCH_S / 4 else size

    def _over_cap(self, connection: sqlalchemy.Connection) -> bool:
        if connection.dialect.name != "sqlite":
            return False
        used = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        return used * _pragma(connection, "page_size") > self._policy.cap_bytes

    def _give_back(self, connection: sqlalchemy.Connection) -> bool:
        """Shrink the file by a few pages, when it has many free ones."""
        if connection.dialect.name != "sqlite":
            return False
        free = _pragma(connection, "freelist_count")
        if free <= _VACUUM_PAGES or _pragma(connection, "auto_vacuum") != 2:
            return False
        self._start()
        shrink(connection, min(_VACUUM_PAGES, free - _VACUUM_PAGES))
        self._stop()
        return True


def shrink(connection: sqlalchemy.Connection, pages: int) -> None:
    """Give free pages back to the file system (at the next checkpoint).

    As a script: the pragma frees one page at each step, and `execute` makes only one.
    """
    driver(connection).executescript(f"PRAGMA incremental_vacuum({pages})")


def _pragma(connection: sqlalchemy.Connection, name: str) -> int:
    with contextlib.closing(driver(connection).cursor()) as cursor:
        return int(cursor.execute(f"PRAGMA {name}").fetchone()[0])
