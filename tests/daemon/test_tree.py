"""Which processes belong to a watched one."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from memplan_daemon.proc import ProcFolder, kib_fields, parse_stat
from memplan_daemon.tree import ALL_ANEW, SCAN_SHARE, ProcessTable, Tree

from memplan.testing import ManualClock


def followed(tree, proc):
    table = ProcessTable(proc.folder, ManualClock())
    table.refresh()
    tree.update(table)
    return sorted(tree.members)


def test_a_name_with_parentheses_and_spaces_is_parsed():
    """The last parenthesis ends the name, whatever the name holds."""
    stat = parse_stat(b"42 (a) b (c)) S 7 42 41 0 -1 0\n")
    assert (stat.pid, stat.state, stat.parent, stat.session) == (42, "S", 7, 41)


@pytest.mark.parametrize("data", [None, b"", b"42", b"42 (x)", b"x (y) S 1 1 1", b"\xff\xfe"])
def test_a_broken_stat_file_is_none(data):
    """A file that was cut off is no process."""
    assert parse_stat(data) is None


def test_kib_fields_are_bytes_and_other_lines_are_left_out():
    """Only "Name: 123 kB" lines count."""
    data = b"VmRSS:\t  10 kB\nThreads:\t4\nName:\tkB\nBad: -3 kB\n"
    assert kib_fields(data) == {"VmRSS": 10240}


def test_descendants_belong_to_the_tree_and_strangers_do_not(proc):
    """Children and grandchildren are found by walking parents."""
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 1), (14, 13)):
        proc.add(pid, parent)
    tree = Tree(10, proc.folder)
    assert followed(tree, proc) == [10, 11, 12]
    tree.close()


def test_an_orphan_of_a_known_tree_stays_in_it(proc):
    """A child whose parent has ended is kept, and its new children are found."""
    proc.add(10)
    proc.add(11, 10)
    proc.add(12, 11)
    tree = Tree(10, proc.folder)
    assert followed(tree, proc) == [10, 11, 12]
    proc.remove(11)
    proc.add(12, 1)
    proc.add(15, 12)
    assert followed(tree, proc) == [10, 12, 15]
    tree.close()


def test_the_session_of_a_leading_root_belongs_to_the_tree(proc):
    """A process that left its parent at once is found by its session."""
    proc.add(10, session=10)
    proc.add(20, 1, session=10)
    proc.add(21, 1, session=9)
    tree = Tree(10, proc.folder)
    assert followed(tree, proc) == [10, 20]
    tree.close()


def test_a_zombie_is_no_member_and_a_tree_of_none_is_not_alive(proc):
    """What waits to be reaped has no memory."""
    proc.add(10)
    tree = Tree(10, proc.folder)
    proc.add(10, state="Z")
    assert followed(tree, proc) == []
    assert not tree.alive


def test_a_process_that_is_not_there_makes_an_empty_tree(proc):
    """Nothing to hold is no exception."""
    assert not Tree(99, proc.folder).alive


def test_a_reused_process_id_is_not_adopted(proc):
    """The table says 11 is a child, but the descriptor shows another parent: left out."""
    proc.add(10)
    proc.add(11, 10)
    table = ProcessTable(proc.folder, ManualClock())
    table.refresh()
    proc.add(11, 1)
    tree = Tree(10, proc.folder)
    tree.update(table)
    assert sorted(tree.members) == [10]
    tree.close()


def test_a_held_process_is_gone_after_it_was_reaped():
    """Every read of a kept descriptor fails, whoever has the number now."""
    child = subprocess.Popen(["sleep", "60"])
    held = ProcFolder().open(child.pid)
    assert b"VmRSS" in held.read("status")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert held.read("status") is None
    assert held.stat() is None
    held.close()


@pytest.fixture
def listed(monkeypatch):
    """Return a table of the real processes, and a function: whom the next listing reads."""
    table, real = ProcessTable(ProcFolder(), ManualClock()), os.open
    opened = []

    def noting(path, *args, **kwargs):
        opened.append(path)
        return real(path, *args, **kwargs)

    def read():
        opened.clear()
        monkeypatch.setattr("memplan_daemon.proc.os.open", noting)
        table.expire()
        table.refresh()
        monkeypatch.undo()
        return {int(path.partition("/")[0]) for path in opened if str(path).endswith("/stat")}

    return table, read


def test_processes_that_stay_are_read_twice_and_now_and_then(listed):
    """The second time because of exec; the kernel's listing tells who is still the same."""
    table, read = listed
    with subprocess.Popen(["sleep", "60"]) as child:
        reads = [child.pid in read() for _ in range(ALL_ANEW + 2)]
        assert reads == [True, True] + [False] * (ALL_ANEW - 2) + [True, False]
        assert table.stats[child.pid].parent == os.getpid()
        child.kill()
        child.wait()
    read()
    assert child.pid not in table.stats


def test_an_orphan_is_read_again_at_once(listed):
    """Its parent ended: it has another one now."""
    table, read = listed
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        orphan = int(parent.stdout.readline())
        for _ in range(3):
            read()
        assert table.stats[orphan].parent == parent.pid
        parent.stdin.close()
        parent.wait()
        assert orphan in read()
        assert table.stats[orphan].parent not in {parent.pid, 0}
        os.kill(orphan, signal.SIGKILL)


def test_an_expensive_scan_is_not_repeated_at_once(proc):
    """After a scan that took 50 ms the next one is at least half a second later."""
    clock = ManualClock()

    class Slow(ProcFolder):
        def stats(self, known=None):
            clock.advance(0.05)
            return super().stats(known)

    table = ProcessTable(Slow(proc.root), clock)
    assert table.refresh()
    clock.advance(0.05 * SCAN_SHARE - 0.001)
    assert not table.refresh()
    clock.advance(0.002)
    assert table.refresh()


def test_ten_thousand_processes_cost_one_short_file_each(proc, monkeypatch):
    """Strangers' status files are never opened: one stat each, and two files per member."""
    base = "S 1 1 1 0 -1 0\n"
    for pid in range(2, 10_002):
        place = proc.root / str(pid)
        place.mkdir()
        (place / "stat").write_text(f"{pid} (x) {base}")
    proc.add(5000, 1, rss=100)
    proc.add(5001, 5000, rss=200)
    opened = []
    real = os.open

    def counting(path, *args, **kwargs):
        opened.append(os.fspath(path))
        return real(path, *args, **kwargs)

    tree = Tree(5000, proc.folder)
    monkeypatch.setattr(os, "open", counting)
    table = ProcessTable(proc.folder, ManualClock())
    table.refresh()
    tree.update(table)
    assert sorted(tree.members) == [5000, 5001]
    assert len(opened) <= 10_000 + 10
    assert opened.count("status") == 1, "of the member that was adopted"
    tree.close()
