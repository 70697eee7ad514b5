"""Roll-ups that were lost are made anew of samples whose checksum is right."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

import pytest
from factories import T0, make_run

from memplan.store.reader import StoreReader
from memplan.store.rebuild import rebuild
from memplan.store.upkeep import check, repair
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

NS = 10**9
PAGE = 4096
ROLLUPS = ("rollup_1m", "rollup_1h")
SERIES = [Series(run_id="r-1", entity=f"process:{i}", metric="rss_bytes") for i in range(8)]


@pytest.fixture
def database(tmp_path):
    """Two hours and more of eight series, one of which is not read each time."""
    path, dice = tmp_path / "m.db", random.Random(5)
    with LocalWriter(path) as writer:
        writer.save_run(make_run())
        for i in range(1500):
            present = SERIES if i % 3 else SERIES[1:]
            t_ns = T0 + i * 6 * NS - (i == 700) * 90 * NS  # a clock that was set back once
            writer.write_samples(
                [Sample(series=s, t_ns=t_ns, value=dice.randrange(1 << 40)) for s in present]
            )
    return path


def rollups(path):
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
            for table in ROLLUPS
        }


def leaves(data, root):
    """Return the numbers of the pages below an index's root that has one level of them."""
    page = data[(root - 1) * PAGE : root * PAGE]
    assert page[0] == 2, "the table is on one page"
    cells = [int.from_bytes(page[12 + 2 * i : 14 + 2 * i], "big") for i in range(page[4])]
    return [int.from_bytes(page[cell : cell + 4], "big") for cell in cells]


def test_what_is_missing_is_made_anew_and_nothing_else_is_touched(database):
    """Also where a minute lies in two blocks; a row that is there may hold more than samples do."""
    before = rollups(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        kept = "UPDATE rollup_1m SET high = high + 1 WHERE period % 7 = 0"
        assert connection.execute(kept).rowcount > 0
        changed = connection.execute("SELECT * FROM rollup_1m WHERE period % 7 = 0").fetchall()
        lost = connection.execute("DELETE FROM rollup_1m WHERE period % 7 IN (2, 3)").rowcount
        lost_hours = connection.execute("DELETE FROM rollup_1h WHERE series_id < 4").rowcount
        assert rebuild(connection) == {"rollup_1m": lost, "rollup_1h": lost_hours}
        assert rebuild(connection) == {"rollup_1m": 0, "rollup_1h": 0}
    after = rollups(database)
    assert after["rollup_1h"] == before["rollup_1h"]
    same = [row for row in before["rollup_1m"] if row[1] % 7]
    assert after["rollup_1m"] == sorted(same + changed, key=lambda row: row[:3])


def test_a_damaged_page_of_minutes_hides_no_peak_after_a_repair(database):
    """Everything is as it was: the samples of those minutes are still there."""
    before = rollups(database)
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'rollup_1m' AND type = 'table'"
        (root,) = connection.execute(query).fetchone()
    data = bytearray(database.read_bytes())
    pages = leaves(data, root)
    middle = pages[len(pages) // 2]
    data[(middle - 1) * PAGE : middle * PAGE] = bytes(PAGE)
    database.write_bytes(data)
    with StoreReader(database) as reader:
        peaks = reader.peaks("r-1")
    assert check(database).problems
    rescue = repair(database)
    assert rescue.counts["rollup_1m"] == len(before["rollup_1m"])
    assert rollups(database) == before
    assert check(database).problems == ()
    with StoreReader(database) as reader:
        assert reader.peaks("r-1") == peaks
