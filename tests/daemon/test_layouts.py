"""From readings to samples: what is found again costs nothing, and nothing is taken for it."""

from __future__ import annotations

from memplan_daemon.collectors.base import Event, Gap, Reading
from memplan_daemon.layouts import _MOST_LAYOUTS, Layouts

RSS, SWAP = Reading("tree", "rss_bytes", 7), Reading("tree", "swap_bytes", 0)
KILL = Event("host", "host.oom_kill", 0, "the kernel killed 1 for want of memory")


def test_the_same_series_are_the_same_tuple_in_every_tick():
    """Also when they come back after a tick with others, and whatever the values are."""
    layouts = Layouts()
    (first,), _ = layouts.sort_out("r", 1, [[RSS], [SWAP]])
    (second,), _ = layouts.sort_out("r", 2, [[RSS], [SWAP, Reading("cgroup", "limit_bytes", 1)]])
    (third,), _ = layouts.sort_out("r", 3, [[RSS._replace(value=8), SWAP]])
    assert first.series is third.series
    assert [series.metric for series in second.series] == ["rss_bytes", "swap_bytes", "limit_bytes"]
    assert [(i.t_ns, list(i.values)) for i in (first, third)] == [(1, [7, 0]), (3, [8, 0])]
    assert layouts.instant("r", 4, [RSS, SWAP]).series is first.series
    (other,), _ = layouts.sort_out("r-2", 1, [[RSS], [SWAP]])
    assert {series.run_id for series in other.series} == {"r-2"}


def test_a_list_that_was_changed_after_it_was_handed_over_is_seen():
    """Found again is what says the same, not what is the same object."""
    layouts, found = Layouts(), [RSS, SWAP]
    layouts.sort_out(None, 1, [list(found)])
    found[0] = RSS._replace(value=9)
    (sample,), _ = layouts.sort_out(None, 2, [list(found)])
    assert list(sample.values) == [9, 0]


def test_an_event_that_happens_twice_is_told_twice_and_a_gap_is_no_sample():
    """Two kills in a row have the same words."""
    layouts = Layouts()
    gap = Gap("tree", "pss_bytes", "no-permission")
    told = [layouts.sort_out(None, tick, [[RSS, gap], [KILL]]) for tick in (1, 2)]
    assert [events for _, events in told] == [[KILL], [KILL]]
    assert [len(samples[0].values) for samples, _ in told] == [1, 1]
    assert layouts.sort_out(None, 3, [[gap]]) == ([], [])
    assert layouts.sort_out(None, 4, []) == ([], [])


def test_sets_of_series_are_bounded():
    """Processes come and go for years."""
    layouts = Layouts()
    for number in range(5 * _MOST_LAYOUTS):
        layouts.sort_out("r", number, [[Reading(f"process:{number}", "rss_bytes", 1)]])
    assert len(layouts._layouts["r"]) <= _MOST_LAYOUTS
    layouts.forget("r")
    assert not layouts._layouts
    assert not layouts._series
    assert not layouts._known
