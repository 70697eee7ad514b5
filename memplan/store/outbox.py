"""Notes of what a fleet's database has not got yet, written with what they are about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import delete, func, insert, select

from memplan.store import tables

__all__ = ["block_key", "fill", "forget", "key", "note", "trim"]

_FILLED = "outbox"
"""Row of `meta` that says that what was there before the outbox has been noted."""


def key(table: sqlalchemy.Table, row: dict[str, Any]) -> str:
    """Return a row's key without the host, as JSON."""
    return json.dumps([row[c.name] for c in table.primary_key if c.name != "host_id"])


def block_key(block: Any) -> str:
    """Return what a shipper needs to know of a block, even when its samples are gone, as JSON."""
    return json.dumps([block[name] for name in ("id", "run_id", "t0_ns", "t1_ns")])


def note(
    connection: sqlalchemy.Connection, kind: str, keys: Sequence[str], size_bytes: int
) -> None:
    """Note rows of one kind: a table's name, or "block" with all that it went into."""
    rows = [{"kind": kind, "key": name, "size_bytes": size_bytes} for name in keys]
    connection.execute(insert(tables.outbox), rows)


def fill(connection: sqlalchemy.Connection, host_id: int) -> None:
    """Note, once, everything that is there already."""
    m = tables.meta.c
    if connection.execute(select(m.value).where(m.key == _FILLED)).first() is not None:
        return
    for table in (tables.plan, tables.run, tables.phase, tables.device, tables.event):
        keys = [c for c in table.primary_key if c.name != "host_id"]
        rows = connection.execute(select(*keys).where(table.c.host_id == host_id)).all()
        if rows:
            note(connection, table.name, [json.dumps(list(row)) for row in rows], 256)
    b = tables.block.c
    blocks = select(b.id, b.run_id, b.t0_ns, b.t1_ns, b.size_bytes).where(b.host_id == host_id)
    for row in connection.execute(blocks.order_by(b.id)).mappings().all():
        note(connection, "block", [block_key(row)], row["size_bytes"])
    connection.execute(insert(tables.meta), {"key": _FILLED, "value": "filled"})


def trim(connection: sqlalchemy.Connection, bound_bytes: int) -> int:
    """Forget the oldest notes beyond a bound in bytes of what they stand for; return how many."""
    o = tables.outbox.c
    if (connection.execute(select(func.sum(o.size_bytes))).scalar() or 0) <= bound_bytes:
        return 0
    size = 0
    for number, each in connection.execute(select(o.id, o.size_bytes).order_by(o.id.desc())):
        size += each
        if size > bound_bytes:
            return int(connection.execute(delete(tables.outbox).where(o.id <= number)).rowcount)
    return 0


def forget(connection: sqlalchemy.Connection, upto: int) -> None:
    """Forget the notes up to a number: they have arrived."""
    connection.execute(delete(tables.outbox).where(tables.outbox.c.id <= upto))
