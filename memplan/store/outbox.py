"""Notes of what a fleet's database has not got yet, written with what they are about.

A note's kind is a table's name, "block" with all that it went into, "hour" for roll-ups whose
samples are gone already, or "erased" for a run that was deleted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, insert, select

from memplan.store import tables
from memplan.store.upsert import insert_new, replace_rows

__all__ = ["IDENTITY", "block_key", "fill", "forget", "key", "leave", "note", "trim", "waiting"]

IDENTITY = "database"
"""Row of `meta` with a database's own name: a new one on the same machine begins its numbers anew,
so a fleet must not take it for the old one."""

_FILLED = "outbox"
"""Row of `meta` that says that what was there before the outbox has been noted; where notes were
turned off again since, its value is the last block then."""

_HOUR_BYTES = 8 * 1024
"""What the roll-ups of one hour count for: two years of them are to find room."""


def key(table: sqlalchemy.Table, row: dict[str, Any]) -> str:
    """Return a row's key without the host, as JSON."""
    return json.dumps([row[c.name] for c in table.primary_key if c.name != "host_id"])


def block_key(block: Any) -> str:
    """Return what a shipper needs to know of a block, even when its samples are gone, as JSON."""
    return json.dumps([block[name] for name in ("id", "run_id", "t0_ns", "t1_ns")])


def note(
    connection: sqlalchemy.Connection, kind: str, keys: Sequence[str], size_bytes: int
) -> None:
    """Note rows of one kind."""
    rows = [{"kind": kind, "key": name, "size_bytes": size_bytes} for name in keys]
    if rows:
        connection.execute(insert(tables.outbox), rows)


def fill(connection: sqlalchemy.Connection, host_id: int) -> None:
    """Note, once, everything that is there already and was not noted when it came.

    Documents last: the oldest notes are those that go where there is no room for all.
    """
    m, b = tables.meta.c, tables.block.c
    insert_new(connection, tables.meta, [{"key": IDENTITY, "value": secrets.token_hex(8)}])
    mark = connection.execute(select(m.value).where(m.key == _FILLED)).scalar()
    if mark == "filled":
        return
    if mark is None:
        note(connection, "hour", [str(hour) for hour in _hours(connection, host_id)], _HOUR_BYTES)
    blocks = select(b.id, b.run_id, b.t0_ns, b.t1_ns, b.size_bytes).where(
        b.host_id == host_id, b.id > int(mark or 0)
    )
    for row in connection.execute(blocks.order_by(b.id)).mappings().all():
        note(connection, "block", [block_key(row)], row["size_bytes"])
    for table in (tables.plan, tables.run, tables.phase, tables.device, tables.event):
        keys = [c for c in table.primary_key if c.name != "host_id"]
        rows = connection.execute(select(*keys).where(table.c.host_id == host_id)).all()
        note(connection, table.name, [json.dumps(list(row)) for row in rows], 256)
    replace_rows(connection, tables.meta, [{"key": _FILLED, "value": "filled"}])


def _hours(connection: sqlalchemy.Connection, host_id: int) -> Iterator[int]:
    """Yield the hours of which there are roll-ups, oldest first, one look-up for each."""
    h = tables.rollup_1h.c
    hour = -(2**31)
    query = select(func.min(h.period)).where(h.host_id == host_id)
    while (found := connection.execute(query.where(h.period > hour)).scalar()) is not None:
        hour = int(found)
        yield hour


def leave(connection: sqlalchemy.Connection, host_id: int) -> None:
    """Remember up to where all was noted: from now on nothing is."""
    m, b = tables.meta.c, tables.block.c
    if connection.execute(select(m.value).where(m.key == _FILLED)).scalar() == "filled":
        last = connection.execute(select(func.max(b.id)).where(b.host_id == host_id)).scalar()
        replace_rows(connection, tables.meta, [{"key": _FILLED, "value": str(last or 0)}])


def waiting(connection: sqlalchemy.Connection) -> tuple[int, int]:
    """Return how many notes wait, and the bytes of what they stand for."""
    o = tables.outbox.c
    count, size = connection.execute(select(func.count(), func.sum(o.size_bytes))).one()
    return int(count), int(size or 0)


def trim(connection: sqlalchemy.Connection, bound_bytes: int) -> int:
    """Forget the oldest notes beyond a bound in bytes of what they stand for; return how many."""
    o = tables.outbox.c
    _, size = waiting(connection)
    excess, number = size - bound_bytes, None
    if excess <= 0:
        return 0
    for number, each in connection.execute(select(o.id, o.size_bytes).order_by(o.id)):  # noqa: B007
        excess -= each
        if excess <= 0:
            break
    return int(connection.execute(delete(tables.outbox).where(o.id <= number)).rowcount)


def forget(connection: sqlalchemy.Connection, upto: int) -> None:
    """Forget the notes up to a number: they have arrived."""
    connection.execute(delete(tables.outbox).where(tables.outbox.c.id <= upto))
