"""Who of large runs has moved: one look at each, and nobody is overlooked or looked at in vain."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from types import SimpleNamespace

import pytest
from memplan_daemon.collectors.base import ALWAYS_IN_FULL
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.proc import ProcFolder
from memplan_daemon.pulse import REST_TICKS, Pulse
from memplan_daemon.sampler import Sampler
from memplan_daemon.tree import Group, ProcessTable

from memplan.testing import ManualClock

PIDS = range(10, 10 + ALWAYS_IN_FULL + 2)


def add(proc, pid, pages, state="S"):
    proc.add(pid, rss=4 * pages, state=state)
    proc.write(f"{pid}/statm", f"{pages} {pages} 0 0 0 0 0\n")


def moved(pulse):
    return {run: [p.pid for p in processes] for run, processes in pulse.moved.items()}


def test_who_moved_is_told_once_and_by_run(proc):
    """At first everybody is new; then who says something else; who is new in a run, too."""
    for pid in range(1, 7):
        add(proc, pid, 100)
    one = {pid: proc.hold(pid) for pid in (1, 2, 3)}
    two = {pid: proc.hold(pid) for pid in (4, 5)}
    pulse = Pulse()
    pulse.read({"r-1": one, "r-2": two})
    assert moved(pulse) == {"r-1": [1, 2, 3], "r-2": [4, 5]}
    pulse.read({"r-1": one, "r-2": two})
    assert moved(pulse) == {}
    add(proc, 2, 101)
    add(proc, 5, 99)
    pulse.read({"r-1": one, "r-2": two})
    assert moved(pulse) == {"r-1": [2], "r-2": [5]}
    two = {**two, 6: proc.hold(6)}
    pulse.read({"r-1": one, "r-2": two})
    assert moved(pulse) == {"r-2": [6]}
    add(proc, 1, 50)
    pulse.read({"r-2": two})
    assert moved(pulse) == {}
    assert pulse.faint == []


def test_who_has_no_memory_is_faint_in_every_tick_and_who_says_nothing_moved(proc):
    """A zombie's file is all zeros, that of one who is gone cannot be read."""
    for pid in (1, 2, 3):
        add(proc, pid, 100)
    members = {pid: proc.hold(pid) for pid in (1, 2, 3)}
    pulse = Pulse()
    pulse.read({"r": members})
    add(proc, 1, 0)
    proc.remove(2)
    pulse.read({"r": members})
    assert (moved(pulse), pulse.faint) == ({"r": [1, 2]}, [("r", 1), ("r", 2)])
    pulse.read({"r": members})
    assert (moved(pulse), pulse.faint) == ({"r": [2]}, [("r", 1), ("r", 2)])
    add(proc, 1, 100)
    pulse.read({"r": {1: members[1], 3: members[3]}})
    assert (moved(pulse), pulse.faint) == ({"r": [1]}, [])


def test_real_processes_that_end_are_faint_by_kept_descriptors():
    """Also before they are reaped; a process that is there is not."""
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    held = {child.pid: ProcFolder().open(child.pid) for child in children}
    pulse = Pulse()
    pulse.read({"r": held})
    try:
        for child in children[:2]:
            child.send_signal(signal.SIGKILL)
        children[0].wait()
        while len(pulse.faint) < 2:
            pulse.read({"r": held})
        assert {pid for _, pid in pulse.faint} == {child.pid for child in children[:2]}
    finally:
        for child in children:
            child.kill()
            child.wait()
        for process in held.values():
            process.close()


@pytest.fixture
def large(proc, writer):
    """Return a sampler of a run of these processes, listed every 15 s, and its clock."""
    for pid in PIDS:
        add(proc, pid, 100 + pid)
    clock = ManualClock()
    collector = ProcessCollector(clock)
    sampler = Sampler(
        clock=clock,
        collectors=[collector],
        writer=writer,
        interval_s=1.0,
        proc=proc.folder,
        table=ProcessTable(proc.folder, clock, shortest_s=15.0),
    )
    group = Group(proc.folder)
    group.wanted = set(PIDS)
    sampler.watch_group("r", group)

    def ticks(number=1):
        for _ in range(number):
            sampler.tick()
            clock.advance(1)

    ticks()
    yield SimpleNamespace(sampler=sampler, collector=collector, group=group, ticks=ticks)
    sampler.close()


def end(proc, pid):
    """It has ended, and waits to be reaped."""
    proc.add(pid, state="Z")
    proc.write(f"{pid}/statm", "0 0 0 0 0 0 0\n")


def test_in_a_large_run_who_ends_leaves_in_the_next_tick_with_a_final_row(proc, writer, large):
    """Without a listing; who gets its number until the next one is no member."""
    end(proc, 12)
    proc.remove(13)
    large.ticks()
    assert set(large.group.members) == set(PIDS) - {12, 13}
    for pid in (12, 13):
        assert writer.values(f"process:{pid}", "final_rss_bytes") == [4096 * (100 + pid)]
    assert writer.values("tree", "processes_count")[-1] == len(PIDS) - 2
    add(proc, 13, 9999)
    large.ticks(3)
    assert set(large.group.members) == set(PIDS) - {12, 13}
    assert large.sampler._table.number == 1


def test_where_all_end_in_one_tick_each_has_its_final_row(proc, writer, large):
    """Killed together, as the ranks of a job are."""
    for pid in PIDS:
        end(proc, pid)
    large.ticks()
    for pid in PIDS:
        assert writer.values(f"process:{pid}", "final_rss_bytes") == [4096 * (100 + pid)]
    large.ticks(30)
    assert len(writer.values("process:12", "final_rss_bytes")) == 1


@pytest.mark.parametrize("giver", [12, 13])
@pytest.mark.parametrize("how", ["ends", "lets go"])
def test_memory_that_one_lets_go_and_another_takes_is_no_peak(proc, writer, large, giver, how):
    """Also where it is not the giver's turn in that second."""
    gib = 2**30 // 4096
    add(proc, giver, 4 * gib)
    large.ticks(2 * REST_TICKS)
    if how == "ends":
        end(proc, giver)
    else:
        add(proc, giver, 1)
    add(proc, 19, 4 * gib)
    large.ticks(3)
    assert max(writer.values("tree", "rss_bytes")) < 4.1 * 2**30
    assert max(writer.values("tree", "hwm_bytes")) < 4.1 * 2**30


def test_who_does_not_move_is_stored_at_its_pace_whatever_the_others_are(writer, large):
    """The paces part after a tick that was missed."""
    large.sampler._pace_due_ns["still"] += 2 * 10**9
    large.ticks(121)
    for metric in ("rss_bytes", "hwm_bytes"):
        assert len(writer.values("process:12", metric)) in {4, 5}, metric


def test_what_is_remembered_of_a_run_is_bounded_by_its_members(proc, large):
    """Processes come and go for weeks."""
    for pid in range(100, 160):
        add(proc, pid, 50)
        large.group.wanted = {*PIDS, pid}
        large.ticks()
        proc.remove(pid)
    assert len(large.collector._states["r"].untold) <= len(PIDS) + 1


def test_who_rests_takes_turns_until_it_moves(proc, monkeypatch):
    """A minute without a move: half of the looks; a move is seen in two ticks, and wakes it."""
    looked, real = [], os.pread
    for pid in range(1, 11):
        add(proc, pid, 100)
    members = {pid: proc.hold(pid) for pid in range(1, 11)}
    files = {process.keep("statm") for process in members.values()}
    pulse = Pulse()

    def counting(*args):
        if args[0] in files:  # other threads read, too
            looked.append(args[0])
        return real(*args)

    monkeypatch.setattr(os, "pread", counting)

    def looks():
        looked.clear()
        pulse.read({"r": members})
        return len(looked)

    for tick in range(2 * REST_TICKS):
        add(proc, 10, 200 + tick % 2)  # the one that always moves
        assert looks() == 10 or tick >= REST_TICKS
    assert [looks() for _ in range(4)] in ([6, 5, 6, 5], [5, 6, 5, 6])
    add(proc, 4, 101)
    seen = []
    for _ in range(2):
        looks()
        seen += moved(pulse).get("r", [])
    assert seen == [4]
    for pages in (102, 103):
        add(proc, 4, pages)
        looks()
        assert moved(pulse) == {"r": [4]}, "it is awake"
    proc.remove(5)
    seen = []
    for _ in range(2):
        looks()
        seen += pulse.faint
    assert set(seen) == {("r", 5)}


def test_over_many_ticks_it_is_what_a_look_at_each_says(proc):
    """Processes move, come, go, and change their runs."""
    dice, pulse = random.Random(1), Pulse()
    pages = dict.fromkeys(range(1, 30), 100)
    for pid in pages:
        add(proc, pid, 100)
    held = {pid: proc.hold(pid) for pid in pages}
    said = {}
    for _ in range(100):
        for pid in dice.sample(sorted(pages), 3):
            pages[pid] = dice.choice([0, 100, 200])
            add(proc, pid, pages[pid])
        cut = dice.randrange(5, 25)
        there = sorted(dice.sample(sorted(held), 20))
        runs = {"a": {p: held[p] for p in there[:cut]}, "b": {p: held[p] for p in there[cut:]}}
        pulse.read(runs)
        new = {pid for pid in there if said.get(pid) != pages[pid]}
        assert {pid for pids in moved(pulse).values() for pid in pids} == new
        assert {pid for _, pid in pulse.faint} == {pid for pid in there if not pages[pid]}
        assert all(pid in runs[run] for run, pids in moved(pulse).items() for pid in pids)
        said = {pid: pages[pid] for pid in there}
