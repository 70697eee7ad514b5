"""Packed samples, roll-ups, peaks, events, hosts; all that 0001 held is kept.

Revision ID: 0002
Revises: 0001

Rows of `tick` and `sample` become blocks and chunks, packed by codec versions 1 and 2 of
`memplan.store.codec`, which are never changed (a new one gets a new number). On PostgreSQL the
large tables are partitioned by day; the partitions of the days that are moved are made here.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

from memplan.errors import StoreVersionError
from memplan.store import codec
from memplan.store.frame import Frame, Summary, by_period, merge, summarize
from memplan.store.identity import host_identity

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DAY_NS, _HOUR_NS, _MINUTE_NS = 86_400 * 10**9, 3600 * 10**9, 60 * 10**9
_BLOCK = 60
_OLD = ("plan", "run", "device", "series")

_INSERT_BLOCK = sa.text(
    "INSERT INTO block (host_id, id, day, run_id, seq0, seq1, t0_ns, t1_ns, n, size_bytes, codec,"
    " crc, data) VALUES (1, :id, :day, :run_id, :seq0, :seq1, :t0_ns, :t1_ns, :n, :size_bytes,"
    " :codec, :crc, :data)"
)
_INSERT_CHUNK = sa.text(
    "INSERT INTO chunk (host_id, day, block_id, series_id, n, low, low_t_ns, high, high_t_ns,"
    " total, last, codec, crc, data) VALUES (1, :day, :block_id, :series_id, :n, :low, :low_t_ns,"
    " :high, :high_t_ns, :total, :last, :codec, :crc, :data)"
)
_ADD_ROLLUP = (
    "INSERT INTO {0} (host_id, period, series_id, n, low, high, high_t_ns, total, last)"
    " VALUES (1, :period, :series_id, :n, :low, :high, :high_t_ns, :total, :last)"
    " ON CONFLICT (host_id, period, series_id) DO UPDATE SET n = {0}.n + excluded.n,"
    " low = CASE WHEN excluded.low < {0}.low THEN excluded.low ELSE {0}.low END,"
    " high_t_ns = CASE WHEN excluded.high > {0}.high THEN excluded.high_t_ns"
    " ELSE {0}.high_t_ns END,"
    " high = CASE WHEN excluded.high > {0}.high THEN excluded.high ELSE {0}.high END,"
    " total = {0}.total + excluded.total, last = excluded.last"
)


def _key(name: str, kind: sa.types.TypeEngine[object] | None = None) -> sa.Column[object]:
    return sa.Column(name, kind or sa.BigInteger(), primary_key=True, autoincrement=False)


def _columns(text: str) -> list[sa.Column[object]]:
    """Return columns from "name type" pairs; a type that ends in ? may be empty."""
    kinds = {
        "big": sa.BigInteger,
        "int": sa.Integer,
        "text": sa.Text,
        "real": sa.Double,
        "blob": sa.LargeBinary,
        "bool": sa.Boolean,
    }
    words = text.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return [
        sa.Column(name, kinds[kind.rstrip("?")](), nullable=kind.endswith("?"))
        for name, kind in pairs
    ]


def _host() -> sa.Column[object]:
    return _key("host_id", sa.Integer())


def upgrade() -> None:
    """Put the old tables aside, make the new ones, move everything over, drop the old ones."""
    for index in ("ix_plan_created_ns", "ix_run_started_ns", "ix_tick_t_ns"):
        op.drop_index(index)
    for table in ("plan", "run", "device", "phase", "series", "tick", "sample"):
        op.rename_table(table, f"old_{table}")
    _create_documents()
    _create_samples()
    connection = op.get_bind()
    _move_documents(connection)
    _move_samples(connection)
    for table in ("sample", "tick", "series", "phase", "device", "run", "plan"):
        op.drop_table(f"old_{table}")


def _create_documents() -> None:
    text, integer = sa.Text(), sa.Integer()
    op.create_table(
        "host", _key("id", integer), sa.Column("key", text, unique=True), *_columns("name text")
    )
    op.create_table(
        "plan",
        _host(),
        _key("id", text),
        *_columns("created_ns big model_name text fits bool document text"),
    )
    op.create_index("ix_plan_created_ns", "plan", ["created_ns"])
    op.create_table(
        "run",
        _host(),
        _key("id", text),
        *_columns("plan_id text? host text pid int? started_ns big ended_ns big? exit_code int?"),
        *_columns("status text document text"),
    )
    op.create_index("ix_run_started_ns", "run", ["started_ns"])
    op.create_table(
        "device", _host(), _key("name", text), _key("uuid", text), *_columns("document text")
    )
    op.create_table(
        "phase",
        _host(),
        _key("run_id", text),
        _key("pid", integer),
        _key("name", text),
        _key("started_ns"),
        *_columns("ended_ns big? document text"),
    )
    op.create_table(
        "event",
        _host(),
        _key("t_ns"),
        _key("kind", text),
        _key("run_id", text),
        _key("entity", text),
        *_columns("severity text document text"),
    )
    op.create_table("meta", _key("key", text), *_columns("value text"))
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        *_columns("kind text key text size_bytes int"),
    )


def _create_samples() -> None:
    integer = sa.Integer()
    op.create_table(
        "entity",
        _host(),
        _key("id", integer),
        *_columns("kind text name text"),
        sa.UniqueConstraint("host_id", "name"),
    )
    op.create_table(
        "series",
        _host(),
        _key("id", integer),
        *_columns("run_id text entity_id int metric text unit text"),
        sa.UniqueConstraint("host_id", "run_id", "entity_id", "metric"),
    )
    op.create_table(
        "tick",
        _host(),
        _key("seq0"),
        *_columns("seq1 big run_id text t0_ns big t1_ns big n int codec int crc int data blob"),
    )
    op.create_table(
        "block",
        _host(),
        _key("id"),
        *_columns("day int run_id text seq0 big seq1 big t0_ns big t1_ns big n int"),
        *_columns("size_bytes int codec int crc int data blob"),
    )
    op.create_index("ix_block_run", "block", ["host_id", "run_id", "id"])
    op.create_table(
        "chunk",
        _host(),
        _key("day", integer),
        _key("block_id"),
        _key("series_id", integer),
        *_columns("n int low big low_t_ns big high big high_t_ns big total real last big"),
        *_columns("codec int crc int data blob"),
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (day)",
    )
    for name in ("rollup_1m", "rollup_1h"):
        op.create_table(
            name,
            _host(),
            _key("period", integer),
            _key("series_id", integer),
            *_columns("n big low big high big high_t_ns big total real last big"),
            sqlite_with_rowid=False,
            postgresql_partition_by="RANGE (period)" if name == "rollup_1m" else None,
        )
    op.create_table(
        "peak",
        _host(),
        _key("series_id", integer),
        *_columns("n big low big high big high_t_ns big first_t_ns big last_t_ns big"),
    )


def _move_documents(connection: sa.Connection) -> None:
    queries = [sa.select(sa.func.count()).select_from(sa.table(f"old_{n}")) for n in _OLD]
    if any(connection.execute(query).scalar() for query in queries):
        key, name = host_identity()  # all that is there is this machine's
        connection.execute(
            sa.text("INSERT INTO host (id, key, name) VALUES (1, :key, :name)"),
            {"key": key, "name": name},
        )
    moved = {
        "plan": "id, created_ns, model_name, fits, document",
        "run": "id, plan_id, host, pid, started_ns, ended_ns, exit_code, status, document",
        "device": "name, uuid, document",
        "phase": "run_id, pid, name, started_ns, ended_ns, document",
    }
    for table, columns in moved.items():
        statement = "INSERT INTO {0} (host_id, {1}) SELECT 1, {1} FROM old_{0}"
        op.execute(statement.format(table, columns))
    names = connection.execute(sa.text("SELECT DISTINCT entity FROM old_series ORDER BY 1")).all()
    ids = {entity: number for number, (entity,) in enumerate(names, 1)}
    _insert_many(
        connection,
        sa.text("INSERT INTO entity (host_id, id, kind, name) VALUES (1, :id, :kind, :name)"),
        [{"id": i, "kind": e.partition(":")[0], "name": e} for e, i in ids.items()],
    )
    rows = connection.execute(sa.text("SELECT id, run_id, entity, metric FROM old_series")).all()
    _insert_many(
        connection,
        sa.text(
            "INSERT INTO series (host_id, id, run_id, entity_id, metric, unit)"
            " VALUES (1, :id, :run_id, :entity_id, :metric, :unit)"
        ),
        [
            {
                "id": row.id,
                "run_id": row.run_id,
                "entity_id": ids[row.entity],
                "metric": row.metric,
                "unit": row.metric.rpartition("_")[2],
            }
            for row in rows
        ],
    )


def _insert_many(
    connection: sa.Connection, statement: sa.TextClause, rows: list[dict[str, object]]
) -> None:
    if rows:
        connection.execute(statement, rows)


def _move_samples(connection: sa.Connection) -> None:
    """Read all samples in their order, once, and close a block of a run at every sixty instants."""
    query = sa.text(
        "SELECT s.run_id, x.series_id, t.t_ns, x.value FROM old_sample x"
        " JOIN old_tick t ON t.seq = x.seq JOIN old_series s ON s.id = x.series_id"
        " ORDER BY x.seq, x.series_id"
    )
    blocks = _Blocks(connection)
    waiting: dict[str, list[tuple[int, int, int]]] = {}
    instants: dict[str, set[int]] = {}
    now: tuple[str, int] | None = None
    readings: list[tuple[int, int, int]] = []
    rows = connection.execute(query.execution_options(yield_per=10_000))
    for run_id, series_id, t_ns, value in (row for part in rows.partitions() for row in part):
        if (run_id, t_ns) != now:
            now = (run_id, t_ns)
            times = instants.setdefault(run_id, set())
            times.add(t_ns)
            if len(times) > _BLOCK:
                blocks.add(run_id, waiting.pop(run_id))
                times.clear()
                times.add(t_ns)
            readings = waiting.setdefault(run_id, [])
        readings.append((series_id, t_ns, value))
    for run_id, readings in waiting.items():
        blocks.add(run_id, readings)
    blocks.finish()


class _Blocks:
    """Writes blocks with their chunks and roll-ups, and remembers the peaks."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._next_block = self._next_seq = 1
        self._peaks: dict[int, Summary] = {}
        self._days: set[int] = set()

    def add(self, run_id: str, readings: Iterable[tuple[int, int, int]]) -> None:
        frame = Frame.of(readings, self._next_seq)
        self._next_seq += len(frame.seqs)
        day = frame.times[0] // _DAY_NS
        self._partition(*{t_ns // _DAY_NS for t_ns in frame.times})
        chunks = [self._chunk(frame, series, day) for series in sorted(frame.columns)]
        version, data = codec.pack(codec.pack_times(frame.times, frame.seqs))
        row = {
            "id": self._next_block,
            "day": day,
            "run_id": run_id,
            "seq0": frame.seqs[0],
            "seq1": frame.seqs[-1],
            "t0_ns": min(frame.times),
            "t1_ns": max(frame.times),
            "n": len(frame.times),
            "size_bytes": len(data) + sum(len(chunk["data"]) for chunk in chunks),
            "codec": version,
            "crc": codec.checksum(data, frame.seqs[0], len(frame.times)),
            "data": data,
        }
        self._connection.execute(_INSERT_BLOCK, row)
        self._connection.execute(_INSERT_CHUNK, chunks)
        minutes = frame.stretches(_MINUTE_NS)
        for table, period_ns in (("rollup_1m", _MINUTE_NS), ("rollup_1h", _HOUR_NS)):
            found = by_period(minutes, _MINUTE_NS, period_ns)
            rows = [
                {"period": period, "series_id": series, **_numbers(summary)}
                for (period, series), summary in found.items()
            ]
            self._connection.execute(sa.text(_ADD_ROLLUP.format(table)), rows)
        self._next_block += 1

    def _chunk(self, frame: Frame, series: int, day: int) -> dict[str, object]:
        column = frame.columns[series]
        summary = summarize(column.values, frame.column_times(column))
        known = self._peaks.get(series)
        self._peaks[series] = summary if known is None else merge(known, summary)
        version, data = codec.pack_column(column.values, column.index)
        crc = codec.checksum(data, summary.n, summary.low, summary.high, summary.last)
        return {
            "day": day,
            "block_id": self._next_block,
            "series_id": series,
            "low_t_ns": summary.low_t_ns,
            "codec": version,
            "crc": crc,
            "data": data,
            **_numbers(summary),
        }

    def _partition(self, *days: int) -> None:
        if self._connection.dialect.name != "postgresql":
            return
        for day in set(days) - self._days:
            self._days.add(day)
            for table, each in (("chunk", 1), ("rollup_1m", 1440)):
                self._connection.execute(
                    sa.text(
                        f"CREATE TABLE IF NOT EXISTS {table}_d{day} PARTITION OF {table}"
                        f" FOR VALUES FROM ({day * each}) TO ({(day + 1) * each})"
                    )
                )

    def finish(self) -> None:
        """Write the peaks."""
        _insert_many(
            self._connection,
            sa.text(
                "INSERT INTO peak (host_id, series_id, n, low, high, high_t_ns, first_t_ns,"
                " last_t_ns) VALUES (1, :series_id, :n, :low, :high, :high_t_ns, :first_t_ns,"
                " :last_t_ns)"
            ),
            [
                {
                    "series_id": series,
                    "n": s.n,
                    "low": s.low,
                    "high": s.high,
                    "high_t_ns": s.high_t_ns,
                    "first_t_ns": s.first_t_ns,
                    "last_t_ns": s.last_t_ns,
                }
                for series, s in self._peaks.items()
            ],
        )


def _numbers(summary: Summary) -> dict[str, object]:
    return {
        "n": summary.n,
        "low": summary.low,
        "high": summary.high,
        "high_t_ns": summary.high_t_ns,
        "total": summary.total,
        "last": summary.last,
    }


def downgrade() -> None:
    """Refuse: what was rolled up cannot become samples again."""
    raise StoreVersionError(
        "packed samples cannot be unpacked into the tables of 0001",
        hint="the database as it was lies beside it, with the ending .before-0002",
    )
