"""All that a reader asks, as text: the same for SQLite and PostgreSQL.

Parameters: host = whose, run = of which run (HOST_RUN: the host's own), after = number of the last
instant that is not wanted, since and until = a window of time, both inclusive.
"""

# ruff: noqa: S608 - what is put together here is all our own text

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["HOST_RUN", "among"]

HOST_RUN = ""
"""Stored run id of the host's own series (NULL would not be unique)."""

PLANS = "SELECT document FROM plan ORDER BY created_ns DESC, id DESC LIMIT :limit"
PLAN_IDS = PLANS.replace("document", "id", 1)
RUNS = "SELECT document FROM run ORDER BY started_ns DESC, id DESC LIMIT :limit"
BEGINNING = "SELECT id, document FROM {table} WHERE substr(id, 1, :length) = :key LIMIT 100"
"""Values whose id begins with a key."""
DEVICES = "SELECT document FROM device ORDER BY name, uuid"
PHASES = "SELECT document FROM phase WHERE run_id = :run ORDER BY started_ns, pid, name"
EVENTS = """
    SELECT document FROM event WHERE t_ns >= :since AND t_ns <= :until
    ORDER BY t_ns DESC, kind DESC, entity DESC LIMIT :limit"""
EVENTS_OF_RUN = EVENTS.replace("WHERE", "WHERE run_id = :run AND")
HOSTS = "SELECT id, key, name FROM host ORDER BY id"
RAN_ON = "SELECT host_id FROM run WHERE id = :run LIMIT 1"

NAMES = """
    SELECT series.id, entity.name, series.metric FROM series
    JOIN entity ON entity.host_id = series.host_id AND entity.id = series.entity_id
    WHERE series.host_id = :host AND series.run_id = :run AND series.id > :after"""

TICKS = """
    SELECT seq0, n, codec, crc, data FROM tick
    WHERE host_id = :host AND run_id = :run AND seq1 > :after
    AND t1_ns >= :since AND t0_ns <= :until ORDER BY seq0"""

_TOUCHED = """
    WHERE block.host_id = :host AND block.run_id = :run
    AND block.t1_ns >= :since AND block.t0_ns <= :until"""
_NARROW = "(block.t1_ns - block.t0_ns <= :half AND block.t0_ns >= :whole)"
_BLOCKS = f"SELECT id, seq0, n, codec, crc, data FROM block {_TOUCHED} AND seq1 > :after"
_CHUNKS = "FROM block CROSS JOIN chunk"
"""In this order: SQLite may else look through every chunk that there is."""
_OF_BLOCK = """
    chunk.host_id = block.host_id AND chunk.day = block.day AND chunk.block_id = block.id"""

EXTENT = f"SELECT count(*), max(block.t1_ns - block.t0_ns) FROM block {_TOUCHED}"
"""How many blocks there are in a window, and how long the longest is."""
BLOCKS = f"""
    {_BLOCKS} AND id > coalesce(
    (SELECT old.id FROM block AS old WHERE old.host_id = :host AND old.run_id = :run
    AND old.seq1 <= :after ORDER BY old.id DESC LIMIT 1), -1) ORDER BY id"""
"""Found from the end: those behind an instant are the last ones."""
WIDE_BLOCKS = f"{_BLOCKS} AND NOT {_NARROW} ORDER BY id"
"""Those that are longer than `half` a bucket, or begin before `whole`."""
CHUNKS = f"""
    SELECT chunk.block_id, chunk.series_id, chunk.n, chunk.low, chunk.high, chunk.last,
    chunk.codec, chunk.crc, chunk.data {_CHUNKS}
    WHERE {_OF_BLOCK} AND block.host_id = :host AND block.id IN {{blocks}} {{wanted}}
    ORDER BY chunk.block_id, chunk.series_id"""
SUMMARIES = f"""
    SELECT chunk.series_id, chunk.n, chunk.low, chunk.high, chunk.high_t_ns, chunk.total,
    chunk.last {_CHUNKS} {_TOUCHED} AND {_OF_BLOCK} AND {_NARROW} {{wanted}} ORDER BY block.id"""
WANTED_CHUNKS = "AND chunk.series_id IN {ids}"

PEAKS = """
    SELECT peak.series_id, peak.high, peak.high_t_ns, peak.n FROM peak
    JOIN series ON series.host_id = peak.host_id AND series.id = peak.series_id
    WHERE peak.host_id = :host AND series.run_id = :run"""
SPAN = """
    SELECT min(peak.first_t_ns), max(peak.last_t_ns) FROM peak
    JOIN series ON series.host_id = peak.host_id AND series.id = peak.series_id
    WHERE peak.host_id = :host AND series.run_id = :run"""
WAITING = "SELECT min(t0_ns), max(t1_ns) FROM tick WHERE host_id = :host AND run_id = :run"
RAW_BEGIN = """
    SELECT coalesce(
    (SELECT t0_ns FROM block WHERE host_id = :host AND run_id = :run ORDER BY id LIMIT 1),
    (SELECT min(t0_ns) FROM tick WHERE host_id = :host AND run_id = :run))"""
"""Where what is left as samples begins."""
FIRST_MINUTE = "SELECT min(period) FROM rollup_1m WHERE host_id = :host"
ROLLUPS = """
    SELECT series_id, n, low, high, high_t_ns, total, last FROM {table}
    WHERE host_id = :host AND {wanted} ORDER BY period"""
PERIODS = "period >= :first AND period < :end"
LOOKED_UP = "period IN {periods} AND series_id IN {ids}"

NEWEST = tuple(
    f"""
    SELECT host.id, written.seq1, written.t1_ns FROM host CROSS JOIN {table} AS written
    WHERE written.host_id = host.id AND written.{key} =
    (SELECT max(other.{key}) FROM {table} AS other WHERE other.host_id = host.id)"""
    for table, key in (("tick", "seq0"), ("block", "id"))
)
"""The last instant that each host has written, of what waits and of what is packed."""


def among(numbers: Iterable[int]) -> str:
    """Return numbers as the right side of IN; nothing is among none."""
    return f"({', '.join(str(int(number)) for number in numbers) or 'NULL'})"
