"""What is killed: each in a process of its own, forked from one that has imported everything.

A fresh interpreter for each of some two hundred kills would spend most of its time on imports.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal

import sqlalchemy

from memplan.store import ship
from memplan.store.frame import HOUR_NS
from memplan.store.retention import Policy
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

NS = 10**9

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["memplan.store.writer", "psycopg", "pytest", "workers"])


def start(work, *arguments):
    """Let a function of this module work; return its process and the end of what it says."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def announced(said, name, work):
    """Return a function that says when it begins and when it has ended."""

    def wrapped(*arguments, **named):
        said.send(f"in {name}")
        try:
            return work(*arguments, **named)
        finally:
            said.send(f"out of {name}")

    return wrapped


def write(said, database, begin_ns, busy):
    """Write one instant after the other and say its number once it is safe.

    What it is busy with is done often, and announced.
    """
    first = begin_ns // NS % 10**6
    now = first
    series = [Series(run_id=None, entity=f"process:{i}", metric="rss_bytes") for i in range(8)]
    writer = LocalWriter(
        database,
        policy=Policy(raw_ns=100 * NS if busy == "retention" else 10**6 * HOUR_NS),
        now_ns=lambda: begin_ns + now * NS,
    )
    checkpoint = announced(said, "checkpoint", writer.checkpoint)
    retention = announced(said, "retention", writer.keep_house)
    if busy == "roll-up":
        writer._pack = announced(said, "roll-up", writer._pack)
    for now in itertools.count(first):
        writer.write_samples(
            [Sample(series=s, t_ns=begin_ns + now * NS, value=now) for s in series]
        )
        if busy == "checkpoint" and now % 5 == 0:
            checkpoint()
        if busy == "retention" and now % 20 == 0:
            retention()
        said.send(now)


def migrate_and_die(said, database, left, signs):
    """Open a database and die before the statement of these kinds that is one too many.

    Says how many were left when it ended well.
    """

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def count(_connection, _cursor, statement, *_rest):
        nonlocal left
        if statement.lstrip().upper().startswith(signs):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    LocalWriter(database).close()
    said.send(left)


def delete_and_die(said, database, run_id, left):
    """Delete a run and die before the deleting statement that is one too many."""
    with LocalWriter(database, policy=Policy(raw_ns=10**6 * HOUR_NS)) as writer:
        said.send("open")

        @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
        def count(_connection, _cursor, statement, *_rest):
            nonlocal left
            if statement.lstrip().upper().startswith("DELETE"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        while writer.delete_run(run_id):
            pass


def ship_ticks(said, name, database, url, ticks):
    """Write ticks and ship what is packed, in very small batches; says each that has arrived."""
    ship.BATCH = 3
    series = [Series(run_id=None, entity=f"gpu:GPU-{i}", metric="used_bytes") for i in range(3)]
    shipper = ship.Shipper(database, url)
    with LocalWriter(database, outbox_bytes=1 << 30, identity=(name, name)) as writer:
        for i in range(writer._core.log._next_seq, ticks + 1):
            t_ns = 1760000000 * NS + i * NS
            writer.write_samples(
                [Sample(series=s, t_ns=t_ns, value=i + n) for n, s in enumerate(series)]
            )
            if i % 120 == 0 and (upto := shipper.step().upto) is not None:
                said.send("sent")
                writer.shipped(upto)
        ship.ship_all(shipper, writer.shipped)
