"""The sampler measures itself, and a snapshot shows what is alive."""

from __future__ import annotations

import pytest
from memplan_daemon.budget import MOST, CpuBudget
from memplan_daemon.collectors.base import Gap, Reading
from memplan_daemon.sampler import Sampler
from memplan_daemon.snapshot import Board, RunInfo

from memplan.testing import ManualClock


class Costly:
    """Uses CPU in each tick."""

    def __init__(self, clock):
        self.clock, self.cpu, self.each_ns = clock, 0, 0

    def collect(self, watch):
        self.cpu += self.each_ns
        yield Reading("host", "used_bytes", 1)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def costly(clock):
    return Costly(clock)


@pytest.fixture
def sampler(clock, costly, writer):
    budget = CpuBudget(clock, lambda: costly.cpu, 0.005)
    return Sampler(
        clock=clock,
        collectors=[costly],
        writer=writer,
        interval_s=1.0,
        host_interval_s=1.0,
        budget=budget,
    )


def run(sampler, clock, seconds):
    end = clock.monotonic_ns() + seconds * 10**9
    while clock.monotonic_ns() < end:
        sampler.tick()
        clock.advance(sampler.due_in_s())


def test_intervals_are_stretched_until_the_cost_is_within_the_budget(sampler, clock, costly):
    """15 ms a tick is 1.5 %: three times too much, so every third second is enough."""
    costly.each_ns = 15_000_000
    run(sampler, clock, 300)
    assert 3.0 <= sampler.budget.stretch <= 5.1
    assert sampler.budget.share <= 0.006
    costly.each_ns = 100_000
    run(sampler, clock, 300)
    assert sampler.budget.stretch == 1.0


def test_there_is_a_bound_to_stretching_and_no_budget_is_no_limit(sampler, clock, costly):
    """Something is sampled in any case."""
    costly.each_ns = 900_000_000
    run(sampler, clock, 300)
    assert sampler.budget.stretch == MOST
    sampler.budget.limit = 0.0
    run(sampler, clock, 100)
    assert sampler.budget.stretch == 1.0


def test_a_helper_that_is_replaced_begins_a_new_window(clock):
    """Its time goes back, the share does not become negative."""
    cpu = [10**9]
    budget = CpuBudget(clock, lambda: cpu[0], 0.5)
    for value in (10**9, 2 * 10**9, 10**6, 2 * 10**6):
        cpu[0] = value
        budget.update()
        clock.advance(6)
    assert budget.share is None or budget.share >= 0


def publish(board, tick, *found, due=(), runs=()):
    infos = {run: RunInfo(pid=1, uid=0) for run in runs}
    groups = [(run, [item]) for run, item in found]
    board.publish(t_ns=tick, tick=tick, due=due, found=groups, runs=infos)
    return board.snapshot()


def test_a_snapshot_keeps_slower_readings_of_what_is_alive_and_forgets_the_dead():
    """A process that ended, a GPU that is silent and a run that is over vanish at once."""
    board = Board()
    fast = [
        ("r", Reading("process:1", "rss_bytes", 1)),
        ("r", Reading("process:2", "rss_bytes", 2)),
        (None, Reading("gpu:G", "used_bytes", 3)),
    ]
    slow = [
        ("r", Reading("process:2", "hwm_bytes", 9)),
        ("r", Reading("cgroup", "limit_bytes", 8)),
        (None, Reading("gpu:G", "power_milliwatts", 7)),
        (None, Gap("gpu:G", "temperature_celsius", "not-supported")),
    ]
    found = publish(board, 1, *fast, *slow, due=("medium",), runs=("r",))
    assert len(found.values) == 6
    found = publish(board, 2, *fast, runs=("r",))
    assert found.values["r", "cgroup", "limit_bytes"] == 8
    assert found.values["r", "process:2", "hwm_bytes"] == 9
    assert found.gaps[None, "gpu:G", "temperature_celsius"] == "not-supported"
    found = publish(board, 3, fast[0], runs=("r",))
    assert set(found.values) == {("r", "process:1", "rss_bytes"), ("r", "cgroup", "limit_bytes")}
    assert publish(board, 4).values == {}
    assert board.snapshot() is board.snapshot()
