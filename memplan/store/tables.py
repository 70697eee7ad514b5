"""The tables. Columns are what queries need; `document` is the whole value as JSON.

Samples are keyed by a running number, never by the wall clock: a clock that jumps back collides
with nothing. A tick is one instant at which several series were read.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["HOST_RUN", "device", "metadata", "phase", "plan", "run", "sample", "series", "tick"]

HOST_RUN = ""
"""Stored run id of the host's own series (NULL would not be unique)."""

metadata = MetaData()

plan = Table(
    "plan",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_ns", BigInteger, nullable=False, index=True),
    Column("model_name", Text, nullable=False),
    Column("fits", Boolean, nullable=False),
    Column("document", Text, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True),
    Column("plan_id", Text),
    Column("host", Text, nullable=False),
    Column("pid", Integer),
    Column("started_ns", BigInteger, nullable=False, index=True),
    Column("ended_ns", BigInteger),
    Column("exit_code", Integer),
    Column("status", Text, nullable=False),
    Column("last_seq", BigInteger),
    Column("document", Text, nullable=False),
)

device = Table(
    "device",
    metadata,
    Column("name", Text, primary_key=True),
    Column("uuid", Text, primary_key=True),
    Column("document", Text, nullable=False),
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    UniqueConstraint("run_id", "entity", "metric"),
)

tick = Table(
    "tick",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("t_ns", BigInteger, nullable=False),
    Index("ix_tick_t_ns", "t_ns"),
)

sample = Table(
    "sample",
    metadata,
    Column("seq", BigInteger, ForeignKey("tick.seq"), primary_key=True),
    Column("series_id", Integer, ForeignKey("series.id"), primary_key=True),
    Column("value", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

phase = Table(
    "phase",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("pid", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("started_ns", BigInteger, primary_key=True),
    Column("ended_ns", BigInteger),
    Column("document", Text, nullable=False),
)
