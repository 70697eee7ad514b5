"""The tables. Columns are what queries need; `document` is the whole value as JSON.

Samples are keyed by running numbers, never by the wall clock: a clock that jumps back collides
with nothing. Every key begins with the host, so that one database can hold a whole fleet; in a
local one it is the same small number everywhere, which takes no space.

    tick        one packed row for each flush: what a crash must not lose
    block       some hundred instants of one run that were packed away; their times
    chunk       one series in one block: its values packed, and their summary
    rollup_1m   one series in one minute, and rollup_1h in one hour of wall clock
    peak        one series ever
    outbox      what a fleet's database has not got yet

A chunk's key begins with its block: what is written together lies together (a key that begins
with the series would touch one page for each series), and one series in a window is found by one
look-up for each block.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from memplan.store.queries import HOST_RUN

__all__ = [
    "HOST_RUN",
    "block",
    "chunk",
    "device",
    "entity",
    "event",
    "host",
    "meta",
    "metadata",
    "outbox",
    "peak",
    "phase",
    "plan",
    "rollup_1h",
    "rollup_1m",
    "run",
    "series",
    "tick",
]

metadata = MetaData()


def _key(name: str, kind: Any = BigInteger) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _number(name: str, kind: Any = BigInteger) -> Column[Any]:
    return Column(name, kind, nullable=False)


def _host() -> Column[Any]:
    return _key("host_id", Integer)


host = Table(
    "host", metadata, _key("id", Integer), Column("key", Text, unique=True), _number("name", Text)
)

plan = Table(
    "plan",
    metadata,
    _host(),
    _key("id", Text),
    Column("created_ns", BigInteger, nullable=False, index=True),
    _number("model_name", Text),
    _number("fits", Boolean),
    _number("document", Text),
)

run = Table(
    "run",
    metadata,
    _host(),
    _key("id", Text),
    Column("plan_id", Text),
    _number("host", Text),
    Column("pid", Integer),
    Column("started_ns", BigInteger, nullable=False, index=True),
    Column("ended_ns", BigInteger),
    Column("exit_code", Integer),
    _number("status", Text),
    _number("document", Text),
)

device = Table(
    "device", metadata, _host(), _key("name", Text), _key("uuid", Text), _number("document", Text)
)

phase = Table(
    "phase",
    metadata,
    _host(),
    _key("run_id", Text),
    _key("pid", Integer),
    _key("name", Text),
    _key("started_ns"),
    Column("ended_ns", BigInteger),
    _number("document", Text),
)

event = Table(
    "event",
    metadata,
    _host(),
    _key("t_ns"),
    _key("kind", Text),
    _key("run_id", Text),
    _key("entity", Text),
    _number("severity", Text),
    _number("document", Text),
)

entity = Table(
    "entity",
    metadata,
    _host(),
    _key("id", Integer),
    _number("kind", Text),
    _number("name", Text),
    UniqueConstraint("host_id", "name"),
)

series = Table(
    "series",
    metadata,
    _host(),
    _key("id", Integer),
    _number("run_id", Text),
    _number("entity_id", Integer),
    _number("metric", Text),
    _number("unit", Text),
    UniqueConstraint("host_id", "run_id", "entity_id", "metric"),
)

tick = Table(
    "tick",
    metadata,
    _host(),
    _key("seq0"),
    _number("seq1"),
    _number("run_id", Text),
    _number("t0_ns"),
    _number("t1_ns"),
    _number("n", Integer),
    _number("codec", Integer),
    _number("crc", Integer),
    _number("data", LargeBinary),
)

block = Table(
    "block",
    metadata,
    _host(),
    _key("id"),
    _number("day", Integer),
    _number("run_id", Text),
    _number("seq0"),
    _number("seq1"),
    _number("t0_ns"),
    _number("t1_ns"),
    _number("n", Integer),
    _number("size_bytes", Integer),
    _number("codec", Integer),
    _number("crc", Integer),
    _number("data", LargeBinary),
    Index("ix_block_run", "host_id", "run_id", "id"),
)

chunk = Table(
    "chunk",
    metadata,
    _host(),
    _key("day", Integer),
    _key("block_id"),
    _key("series_id", Integer),
    _number("n", Integer),
    _number("low"),
    _number("low_t_ns"),
    _number("high"),
    _number("high_t_ns"),
    _number("total", Double),
    _number("last"),
    _number("codec", Integer),
    _number("crc", Integer),
    _number("data", LargeBinary),
    sqlite_with_rowid=False,
)


def _rollup(name: str) -> Table:
    return Table(
        name,
        metadata,
        _host(),
        _key("period", Integer),
        _key("series_id", Integer),
        _number("n"),
        _number("low"),
        _number("high"),
        _number("high_t_ns"),
        _number("total", Double),
        _number("last"),
        sqlite_with_rowid=False,
    )


rollup_1m = _rollup("rollup_1m")
rollup_1h = _rollup("rollup_1h")

peak = Table(
    "peak",
    metadata,
    _host(),
    _key("series_id", Integer),
    _number("n"),
    _number("low"),
    _number("high"),
    _number("high_t_ns"),
    _number("first_t_ns"),
    _number("last_t_ns"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _number("kind", Text),
    _number("key", Text),
    _number("size_bytes", Integer),
)

meta = Table("meta", metadata, _key("key", Text), _number("value", Text))
