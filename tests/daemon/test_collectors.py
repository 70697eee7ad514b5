"""Collectors against recorded folders: exact bytes, and silence where something is missing."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from memplan_daemon.collectors.base import (
    ALWAYS_IN_FULL,
    HOST,
    Event,
    Gap,
    Reading,
    Steady,
    Watch,
)
from memplan_daemon.collectors.cgroup import CgroupCollector
from memplan_daemon.collectors.host import HostCollector
from memplan_daemon.collectors.process import (
    LARGEST,
    PSS_INTERVAL_S,
    ProcessCollector,
)
from memplan_daemon.collectors.rollup import LONGEST_NS, PSS_LARGEST_BYTES, SHARE
from memplan_daemon.proc import Process
from memplan_daemon.pulse import Pulse

from memplan.testing import ManualClock

KIB = 1024


def members(proc, *pids):
    return {pid: proc.hold(pid) for pid in pids}


def collect(collector, watch):
    found = collector.collect(watch)
    return found.found if isinstance(found, Steady) else list(found)


def values(found):
    return {(r.entity, r.metric): r.value for r in found if isinstance(r, Reading)}


def read(collector, watch):
    return values(collect(collector, watch))


def others(collector, watch, kind):
    return [item for item in collect(collector, watch) if isinstance(item, kind)]


def watch(proc, *pids, tick=0):
    return Watch(run_id="r-1", pid=pids[0], members=members(proc, *pids), tick=tick)


def test_host_memory_is_read_to_the_byte(proc):
    """Used is total less available; used swap is total less free."""
    (proc.root / "meminfo").write_text(
        "MemTotal:       24000 kB\nMemFree:         4000 kB\nMemAvailable:   16000 kB\n"
        "SwapTotal:       2000 kB\nSwapFree:        1500 kB\nHugePages_Total:       0\n"
    )
    assert read(HostCollector(proc.folder), HOST) == {
        ("host", "total_bytes"): 24000 * KIB,
        ("host", "available_bytes"): 16000 * KIB,
        ("host", "free_bytes"): 4000 * KIB,
        ("host", "used_bytes"): 8000 * KIB,
        ("host", "swap_bytes"): 500 * KIB,
    }


def test_a_missing_line_of_meminfo_is_a_missing_series(proc):
    """What is not known is never 0."""
    (proc.root / "meminfo").write_text("MemTotal: 24000 kB\n")
    assert read(HostCollector(proc.folder), HOST) == {("host", "total_bytes"): 24000 * KIB}


def test_no_meminfo_and_a_run_give_no_host_readings(proc):
    """A run's watch is not the host's."""
    collector = HostCollector(proc.folder)
    assert read(collector, HOST) == {}
    (proc.root / "meminfo").write_text("MemTotal: 24000 kB\n")
    assert read(collector, Watch(run_id="r-1", pid=1)) == {}


def test_a_tree_is_the_sum_of_its_processes(proc):
    """RSS and its kinds are added up; each process keeps its own series."""
    proc.add(10, rss=1000, anon=700)
    proc.add(11, 10, rss=300, anon=250)
    found = read(ProcessCollector(ManualClock()), watch(proc, 10, 11))
    assert found["process:10", "rss_bytes"] == 1000 * KIB
    assert found["process:11", "rss_anon_bytes"] == 250 * KIB
    assert found["tree", "rss_bytes"] == 1300 * KIB
    assert found["tree", "rss_anon_bytes"] == 950 * KIB
    assert found["tree", "rss_file_bytes"] == 350 * KIB
    assert found["tree", "rss_shmem_bytes"] == 0
    assert found["tree", "processes_count"] == 2


def test_in_a_large_tree_a_fast_tick_reads_in_full_what_moved(proc):
    """By statm; at the pace "still" everything, as a mark can rise between two equal readings."""
    pids = range(10, 10 + ALWAYS_IN_FULL + 1)
    for pid in pids:
        proc.add(pid, rss=1000, hwm=1000)
        proc.write(f"{pid}/statm", "1 250 0 0 0 0 0\n")
    collector, pulse = ProcessCollector(ManualClock()), Pulse()
    held = members(proc, *pids)

    def tick(number, *due):
        pulse.read({"r-1": held})
        moved = pulse.moved.get("r-1", ())
        asked = Watch(
            run_id="r-1", pid=10, members=held, moved=moved, tick=number, due=frozenset(due)
        )
        return read(collector, asked)

    tick(0, "medium", "still")
    for pid in (10, 11):
        proc.add(pid, rss=2000, hwm=9000)
    proc.write("11/statm", "1 500 0 0 0 0 0\n")
    found = tick(1)
    assert found["process:10", "rss_bytes"] == 1000 * KIB
    assert found["process:11", "rss_bytes"] == 2000 * KIB
    assert found["tree", "rss_bytes"] == (len(pids) + 1) * 1000 * KIB
    found = tick(2, "medium")
    assert found["process:10", "hwm_bytes"] == 1000 * KIB
    assert found["process:11", "hwm_bytes"] == 9000 * KIB
    assert tick(3, "medium", "still")["process:10", "hwm_bytes"] == 9000 * KIB


def told(answer):
    """Return what a tick that stores what moved stores of an answer; nothing is in it twice."""
    if not isinstance(answer, Steady):
        return values(answer)
    news = values(answer.news)
    assert len(news) == len(answer.news)
    return news


@pytest.mark.parametrize("count", [2 * ALWAYS_IN_FULL, LARGEST + 8])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_carried_on_from_tick_to_tick_is_what_is_read_at_once(proc, seed, count):
    """Processes move, come, go, and live in their parents' memory for a while."""
    dice, collector, pulse = random.Random(seed), ProcessCollector(ManualClock()), Pulse()
    there, held, known = {}, {}, {}
    fast = ("rss_bytes", "rss_anon_bytes")

    def move(pid, rss, parent=1):
        there[pid] = rss
        proc.add(pid, parent, rss=rss, anon=rss // 2, hwm=rss)
        proc.write(f"{pid}/statm", f"9 {rss} 0 0 0 0 0\n")

    def remove(pid):
        del there[pid]
        proc.remove(pid)
        proc.held.pop(pid)

    for pid in range(10, 10 + count):
        move(pid, 10_000 + 77 * pid)
    for tick in range(60):
        what = dice.choice(["move"] * 6 + ["both", "share", "come", "go"])
        if what == "come":
            move(max(there) + 1, dice.randrange(10**4, 10**5))
        elif what == "go" and len(there) > ALWAYS_IN_FULL + 1:
            remove(dice.choice(sorted(there)))
        else:
            first, second = dice.sample(sorted(there), 2)
            move(first, dice.randrange(10**4, 10**5))
            if what == "both":
                move(second, dice.randrange(10**4, 10**5))
            elif what == "share":
                move(second, there[first], parent=first)
        due = frozenset(("still", "medium") if tick % 7 == 0 else ("medium",) if tick % 3 else ())
        held = held if held.keys() == there.keys() else members(proc, *sorted(there))
        pulse.read({"r-1": held})
        moved = pulse.moved.get("r-1", ())
        asked = Watch(run_id="r-1", pid=10, members=held, moved=moved, tick=tick, due=due)
        answer = collector.collect(asked)
        found = values(answer.found if isinstance(answer, Steady) else answer)
        known |= told(answer)
        assert found.items() <= known.items(), "all that is new is told"
        once = read(ProcessCollector(ManualClock()), replace(asked, due=frozenset()))
        del once["tree", "hwm_bytes"]
        assert {key: found.get(key) for key in once} == once
        living = {key for key in found if key[1] in fast}
        assert living == {key for key in once if key[1] in fast}


def test_the_mark_of_one_process_is_exact_between_samples(proc):
    """VmHWM above every sampled sum is the tree's mark when there is one process."""
    proc.add(10, rss=1000, hwm=5000)
    assert read(ProcessCollector(ManualClock()), watch(proc, 10))["tree", "hwm_bytes"] == 5000 * KIB


def test_marks_of_several_processes_are_not_added_up(proc):
    """Marks need not fall on one moment: the largest sum or single mark counts, and is kept."""
    collector = ProcessCollector(ManualClock())
    proc.add(10, rss=1000, hwm=1200)
    proc.add(11, 10, rss=900, hwm=1100)
    assert read(collector, watch(proc, 10, 11))["tree", "hwm_bytes"] == 1900 * KIB
    proc.add(10, rss=100, hwm=1200)
    proc.add(11, 10, rss=50, hwm=1100)
    found = read(collector, watch(proc, 10, 11, tick=1))
    assert found["tree", "rss_bytes"] == 150 * KIB
    assert found["tree", "hwm_bytes"] == 1900 * KIB
    assert found["process:11", "hwm_bytes"] == 1100 * KIB


def test_a_run_that_was_left_out_of_a_tick_begins_anew(proc):
    """Marks belong to one run, and are forgotten with it."""
    collector = ProcessCollector(ManualClock())
    proc.add(10, rss=1000)
    read(collector, watch(proc, 10))
    proc.add(10, rss=10)
    assert read(collector, watch(proc, 10, tick=5))["tree", "hwm_bytes"] == 10 * KIB


def test_a_child_in_its_parents_memory_is_not_counted_twice(proc):
    """Between vfork and exec a child shows its parent's numbers."""
    proc.add(10, rss=1000, hwm=1500, anon=800)
    proc.add(11, 10, rss=1000, hwm=1500, anon=800)
    found = read(ProcessCollector(ManualClock()), watch(proc, 10, 11))
    assert found["tree", "rss_bytes"] == 1000 * KIB
    assert found["tree", "processes_count"] == 1


def test_only_the_largest_processes_have_series_but_all_are_summed(proc):
    """A build with hundreds of processes makes a bounded number of series."""
    pids = range(100, 100 + LARGEST + 20)
    for pid in pids:
        proc.add(pid, rss=pid)
    found = read(ProcessCollector(ManualClock()), watch(proc, *pids))
    own = {entity for entity, _ in found if entity.startswith("process:")}
    assert own == {f"process:{pid}" for pid in pids[20:]}
    assert found["tree", "rss_bytes"] == sum(pids) * KIB


def test_who_is_one_of_the_largest_is_chosen_anew_only_when_that_may_have_changed(proc):
    """A small one that stays small moves the sum alone; one that passes the others gets series."""
    pids = range(100, 100 + LARGEST + 20)
    for pid in pids:
        proc.add(pid, rss=pid, hwm=pid)
    collector, held, small, large = ProcessCollector(ManualClock()), members(proc, *pids), 101, 170

    def tick(number, *moved, due=()):
        asked = Watch(
            run_id="r-1",
            pid=100,
            members=held,
            moved=[held[pid] for pid in moved],
            tick=number,
            due=frozenset(due),
        )
        return collector.collect(asked)

    total = sum(pids)
    tick(0, *pids, due=("medium", "still"))
    assert tick(1).news == [Reading("tree", "rss_bytes", total * KIB)]
    proc.add(small, rss=small + 5, hwm=small + 5)
    news = values(tick(2, small).news)
    assert {entity for entity, _ in news} == {"tree"}
    assert news["tree", "rss_bytes"] == (total + 5) * KIB
    proc.add(large, rss=large + 5, hwm=large + 5)
    assert ("process:170", "rss_bytes") in values(tick(3, large).news)
    proc.add(small, rss=1000, hwm=1000)
    found = values(tick(4, small))
    assert found["process:101", "rss_bytes"] == 1000 * KIB
    assert ("process:120", "rss_bytes") not in found, "the smallest had to go"
    proc.add(large, rss=1, hwm=175)
    found = values(tick(5, large))
    assert ("process:170", "rss_bytes") not in found
    assert ("process:120", "rss_bytes") in found


def test_pss_is_read_at_its_own_slow_pace(proc):
    """The first tick reads it, the next ones do not before five seconds have gone."""
    clock = ManualClock()
    collector = ProcessCollector(clock)
    proc.add(10, rss=1000, pss=600)
    found = read(collector, watch(proc, 10))
    assert found["process:10", "pss_bytes"] == 600 * KIB
    assert found["tree", "uss_bytes"] == 3 * KIB
    clock.advance(PSS_INTERVAL_S - 0.1)
    assert ("tree", "pss_bytes") not in read(collector, watch(proc, 10, tick=1))
    clock.advance(0.2)
    assert read(collector, watch(proc, 10, tick=2))["tree", "pss_bytes"] == 600 * KIB


def test_pss_of_a_tree_needs_every_process(proc):
    """Where one may not be read the sum would be too small: it is left out."""
    proc.add(10, rss=1000, pss=600)
    proc.add(11, 10, rss=500)
    found = read(ProcessCollector(ManualClock()), watch(proc, 10, 11))
    assert found["process:10", "pss_bytes"] == 600 * KIB
    assert ("tree", "pss_bytes") not in found


def slow_rollups(monkeypatch, clock, seconds):
    """Let each smaps_rollup take so long; return whose were read."""
    asked = []
    real = Process.read

    def slow(self, name):
        if name == "smaps_rollup":
            asked.append(self.pid)
            clock.advance(seconds(self.pid))
        return real(self, name)

    monkeypatch.setattr(Process, "read", slow)
    return asked


def pss_of_ticks(proc, sizes):
    """Return the PSS that is read of one process in ticks of 0.1 s, None where it is not."""
    clock = ManualClock()
    collector = ProcessCollector(clock)
    found = []
    for tick, rss in enumerate(sizes):
        proc.add(10, rss=rss, pss=rss)
        pss = read(collector, watch(proc, 10, tick=tick)).get(("tree", "pss_bytes"))
        found.append(pss and pss // KIB)
        clock.advance(0.1)
    return found


def test_pss_is_read_again_where_a_process_has_doubled(proc):
    """A program that ends within the interval is known by more than its first moment."""
    assert pss_of_ticks(proc, [100, 150, 199, 200, 300, 1000]) == [100, None, None, 200, None, 1000]


def test_pss_is_read_again_where_a_process_has_grown_and_rests(proc):
    """By a quarter; a page more or less is rest, and what shrinks is not read again."""
    sizes = [1000, 1240, 1240, 1255, 1265, 1260, 900, 1265, 1265]
    assert pss_of_ticks(proc, sizes) == [1000, None, None, 1255, *[None] * 5]
    assert pss_of_ticks(proc, [1000, 1300, 1600, 1600]) == [1000, None, None, 1600]


def test_pss_of_what_grows_stays_within_the_budget(proc, monkeypatch):
    """Programs that double and shrink all the time are read no more often than others."""
    clock = ManualClock()
    collector = ProcessCollector(clock)
    asked = slow_rollups(monkeypatch, clock, lambda _: 0.010)
    for tick in range(600):
        for pid in range(10, 14):
            proc.add(pid, rss=1000 * 2 ** (tick % 8), pss=1)
        read(collector, watch(proc, *range(10, 14), tick=tick))
        clock.advance(0.1)
    allowed = (LONGEST_NS / 1e9 + SHARE * 67) / 0.010
    assert len(asked) <= allowed + 1


def test_pss_of_a_process_that_was_small_is_still_read_when_it_is_large(proc, monkeypatch):
    """What a reading of a small one costs is no measure of its gibibytes."""
    clock = ManualClock()
    collector = ProcessCollector(clock)
    asked = slow_rollups(monkeypatch, clock, lambda _: 0.000_06)
    proc.add(10, rss=300, pss=300)
    read(collector, watch(proc, 10))
    proc.add(10, rss=2 * 1024**2, pss=2 * 1024**2)
    clock.advance(20)
    read(collector, watch(proc, 10, tick=1))
    assert asked == [10, 10]


def test_a_process_whose_reading_took_too_long_holds_up_no_other(proc, monkeypatch):
    """The machine was busy then: it is passed by, others go on, and it is asked again later."""
    clock = ManualClock()
    collector = ProcessCollector(clock)
    costs = {10: iter([0.200, *[0.001] * 99])}
    asked = slow_rollups(monkeypatch, clock, lambda pid: next(costs.get(pid, iter([0.001]))))
    for pid in (10, 11):
        proc.add(pid, rss=1000, pss=600)
    seen = []
    for tick in range(40):
        seen.append(("tree", "pss_bytes") in read(collector, watch(proc, 10, 11, tick=tick)))
        clock.advance(PSS_INTERVAL_S + 1)
    assert asked.count(11) > 30
    assert asked.count(10) > 30
    assert not seen[1], "no sum with what is too old"
    assert seen[-1]


def test_pss_costs_the_targets_no_more_than_its_share_of_the_time(proc, monkeypatch):
    """Reads of 10 ms each: at first what was saved, then half a percent of what goes by."""
    clock = ManualClock()
    collector = ProcessCollector(clock, 1.0)
    for pid in range(10, 30):
        proc.add(pid, rss=1000, pss=600)
    proc.add(40, rss=PSS_LARGEST_BYTES // KIB + 1, pss=5)
    asked = slow_rollups(monkeypatch, clock, lambda _: 0.010)
    pids = (*range(10, 30), 40)
    for tick in range(61):
        read(collector, watch(proc, *pids, tick=tick))
        clock.advance(1)
    allowed = (LONGEST_NS / 1e9 + SHARE * 62) / 0.010
    assert allowed * 0.8 < len(asked) <= allowed + 1
    assert 40 not in asked
    assert len(set(asked)) == 20, "the longest unread come first"


def test_a_program_that_asks_for_quiet_is_not_stalled(proc):
    """Its PSS is left alone, its status is read."""
    proc.add(10, rss=1000, pss=600)
    quiet = Watch(run_id="r-1", pid=10, members=members(proc, 10), quiet=True)
    found = read(ProcessCollector(ManualClock()), quiet)
    assert ("process:10", "rss_bytes") in found
    assert ("process:10", "pss_bytes") not in found


def test_a_process_that_ended_has_a_final_row(proc):
    """Its last RSS and its mark, once."""
    collector = ProcessCollector(ManualClock())
    proc.add(10, rss=1000)
    proc.add(11, 10, rss=300, hwm=700)
    read(collector, watch(proc, 10, 11))
    proc.remove(11)
    found = read(collector, watch(proc, 10, tick=1))
    assert found["process:11", "final_hwm_bytes"] == 700 * KIB
    assert found["process:11", "final_rss_bytes"] == 300 * KIB
    assert ("process:11", "rss_bytes") not in found
    assert not [e for e, _ in read(collector, watch(proc, 10, tick=2)) if e == "process:11"]


def test_stalls_and_kills_for_want_of_memory_are_read(proc, tmp_path):
    """The kernel's totals; each kill is one event, with the victim's name where the log has it."""
    log = tmp_path / "kmsg"
    log.write_text("6,1,1,-;Out of memory: Killed process 7 (old) total-vm:1kB\n")
    proc.write("meminfo", "MemTotal: 24000 kB\n")
    proc.write("vmstat", "pgfault 5\noom_kill 3\nswap_ra 0\n")
    proc.write("pressure/memory", "some avg10=0.00 total=1234\nfull avg10=0.00 total=567\n")
    collector = HostCollector(proc.folder, log)
    found = read(collector, HOST)
    assert found["host", "stall_some_microseconds"] == 1234
    assert found["host", "stall_full_microseconds"] == 567
    assert found["host", "oom_kill_count"] == 3
    proc.write("vmstat", "pgfault 5\noom_kill 5\nswap_ra 0\n")
    with log.open("a") as file:
        file.write("6,2,2,-;Memory cgroup out of memory: Killed process 4711 (python3) total\n")
    events = others(collector, HOST, Event)
    assert [(e.kind, e.code) for e in events] == [("host.oom_kill", 4711), ("host.oom_kill", 0)]
    assert "python3" in events[0].text
    assert others(collector, HOST, Event) == []


def test_a_kernel_without_pressure_figures_is_said(proc):
    """A gap with its reason."""
    proc.write("meminfo", "MemTotal: 24000 kB\n")
    gaps = others(HostCollector(proc.folder), HOST, Gap)
    assert gaps == [Gap("host", "stall_some_microseconds", "not-supported")]


def test_a_vanished_process_means_fewer_series(proc):
    """A member that ended between listing and reading is left out."""
    proc.add(10, rss=1000)
    proc.add(11, 10, rss=300)
    seen = watch(proc, 10, 11)
    proc.remove(11)
    found = read(ProcessCollector(ManualClock()), seen)
    assert found["tree", "rss_bytes"] == 1000 * KIB
    proc.remove(10)
    assert read(ProcessCollector(ManualClock()), seen) == {}


def group(proc, tmp_path, text):
    proc.add(10)
    (proc.root / "10" / "cgroup").write_text(text)
    root = tmp_path / "cgroup"
    root.mkdir(exist_ok=True)
    return CgroupCollector(proc.folder, root), root


def test_cgroup_v2_takes_the_tightest_limit_on_the_way_up(proc, tmp_path):
    """The leaf has no limit of its own; its parent's is in force."""
    collector, root = group(proc, tmp_path, "0::/jobs/train\n")
    leaf = root / "jobs" / "train"
    leaf.mkdir(parents=True)
    (leaf / "memory.max").write_text("max\n")
    (leaf / "memory.current").write_text("5000\n")
    (leaf / "memory.peak").write_text("7000\n")
    (root / "jobs" / "memory.max").write_text("9000\n")
    (leaf / "memory.events").write_text("low 0\nhigh 2\nmax 5\noom 1\noom_kill 1\n")
    assert read(collector, watch(proc, 10)) == {
        ("cgroup", "throttled_count"): 2,
        ("cgroup", "limit_hit_count"): 5,
        ("cgroup", "oom_kill_count"): 1,
        ("cgroup", "limit_bytes"): 9000,
        ("cgroup", "current_bytes"): 5000,
        ("cgroup", "peak_bytes"): 7000,
    }


def test_cgroup_changes_are_seen_and_a_kill_inside_is_an_event(proc, tmp_path):
    """A limit that is set, moved and lifted; a group that is removed; one kill, told once."""
    collector, root = group(proc, tmp_path, "0::/job\n")
    ticks = itertools.count()

    def seen():
        return watch(proc, 10, tick=next(ticks))

    (root / "job").mkdir()
    limit, events = root / "job" / "memory.max", root / "job" / "memory.events"
    for text, found in (("max\n", None), ("5000\n", 5000), ("4000\n", 4000), ("max\n", None)):
        limit.write_text(text)
        assert read(collector, seen()).get(("cgroup", "limit_bytes")) == found
    events.write_text("oom_kill 0\n")
    assert others(collector, seen(), Event) == []
    events.write_text("oom_kill 2\n")
    assert [e.kind for e in others(collector, seen(), Event)] == ["cgroup.oom_kill"]
    assert others(collector, seen(), Event) == []
    limit.unlink()
    events.unlink()
    (root / "job").rmdir()
    assert read(collector, seen()) == {}


def test_runs_of_one_group_are_told_the_same_in_one_tick(proc, tmp_path):
    """The group is read once; a kill inside is an event of each."""
    collector, root = group(proc, tmp_path, "0::/job\n")
    (root / "job").mkdir()
    for tick, kills in enumerate((0, 1)):
        (root / "job" / "memory.events").write_text(f"oom_kill {kills}\n")
        for run_id in ("r-1", "r-2"):
            asked = Watch(run_id=run_id, pid=10, members=members(proc, 10), tick=tick)
            found = list(collector.collect(asked))
            assert Reading("cgroup", "oom_kill_count", kills) in found
            assert sum(isinstance(item, Event) for item in found) == kills


def test_cgroup_v2_beside_version_1_controllers_is_found(proc, tmp_path):
    """A hybrid machine mounts it one folder further down."""
    collector, root = group(proc, tmp_path, "1:cpu:/x\n0::/job\n")
    leaf = root / "unified" / "job"
    leaf.mkdir(parents=True)
    (leaf / "memory.current").write_text("77\n")
    assert read(collector, watch(proc, 10)) == {("cgroup", "current_bytes"): 77}


def test_cgroup_v1_of_a_hybrid_machine_is_found(proc, tmp_path):
    """The memory controller's own line wins; the kernel's "no limit" is no limit."""
    collector, root = group(proc, tmp_path, "5:cpu:/x\n4:memory:/job\n0::/other\n")
    leaf = root / "memory" / "job"
    leaf.mkdir(parents=True)
    (leaf / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (leaf / "memory.usage_in_bytes").write_text("123\n")
    (leaf / "memory.max_usage_in_bytes").write_text("456\n")
    assert read(collector, watch(proc, 10)) == {
        ("cgroup", "current_bytes"): 123,
        ("cgroup", "peak_bytes"): 456,
    }


@pytest.mark.parametrize("path", ["/not/mounted/here", "/../../host/path"])
def test_in_a_container_the_mount_itself_is_the_group(proc, tmp_path, path):
    """The path in /proc may be the host's, which does not exist inside."""
    collector, root = group(proc, tmp_path, f"0::{path}\n")
    (root / "memory.max").write_text("4096\n")
    assert read(collector, watch(proc, 10)) == {("cgroup", "limit_bytes"): 4096}


@pytest.mark.parametrize("text", ["", "5:cpu:/x\n", "nonsense\n"])
def test_without_a_memory_controller_there_are_no_readings(proc, tmp_path, text):
    """Nothing to read is no exception."""
    collector, _ = group(proc, tmp_path, text)
    assert read(collector, watch(proc, 10)) == {}
    assert read(collector, HOST) == {}
