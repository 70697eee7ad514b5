"""From readings to samples: what is found again costs nothing, and nothing is taken for it."""

from __future__ import annotations

from memplan_daemon.collectors.base import Event, Gap, Reading, Steady
from memplan_daemon.layouts import _MOST_LAYOUTS, Layouts

from memplan.store.batch import SMALL, Instants

RSS, SWAP = Reading("tree", "rss_bytes", 7), Reading("tree", "swap_bytes", 0)
TREE = Reading("tree", "processes_count", 2)
KILL = Event("host", "host.oom_kill", 0, "the kernel killed 1 for want of memory")


def many(run, value):
    """Return readings of so many series that their set is remembered."""
    return [Reading(f"gpu:{number}", run, value) for number in range(SMALL)]


def test_the_same_series_are_the_same_tuple_in_every_tick():
    """Also when they come back after a tick with others, and whatever the values are."""
    layouts = Layouts()
    (first,), _ = layouts.sort_out("r", 1, [many("rss_bytes", 7), [SWAP]])
    (second,), _ = layouts.sort_out("r", 2, [many("rss_bytes", 7), [SWAP, RSS]])
    (third,), _ = layouts.sort_out("r", 3, [many("rss_bytes", 8), [SWAP]])
    assert first.series is third.series
    assert [series.metric for series in second.series[-2:]] == ["swap_bytes", "rss_bytes"]
    assert [(i.t_ns, set(i.values)) for i in (first, third)] == [(1, {7, 0}), (3, {8, 0})]
    assert layouts.instant("r", 4, [*many("rss_bytes", 9), SWAP]).series is first.series
    (other,), _ = layouts.sort_out("r-2", 1, [[RSS], [SWAP]])
    assert {series.run_id for series in other.series} == {"r-2"}


def test_a_thin_tick_stores_of_single_processes_what_is_not_stored_already():
    """Sums are stored in every tick; a process's peak is a change, and is never left out."""
    layouts = Layouts()

    def stored(tick, *found, thin=True):
        samples, _ = layouts.sort_out("r", tick, [[TREE], list(found)], thin=thin)
        return [(s.series.entity, s.series.metric, s.value) for s in Instants(samples)]

    def rss(pid, value):
        return Reading(f"process:{pid}", "rss_bytes", value)

    mark = Reading("process:1", "hwm_bytes", 9)
    assert stored(1, rss(1, 5), rss(2, 5), mark, thin=False) == [TREE, rss(1, 5), rss(2, 5), mark]
    assert stored(2, rss(1, 5), rss(2, 5)) == [TREE]
    assert stored(3, rss(1, 6), rss(2, 5)) == [TREE, rss(1, 6)]
    assert stored(4, rss(1, 6), rss(2, 5)) == [TREE]
    assert stored(5, rss(1, 6), rss(2, 5)) == [TREE], "told again: the same answer"
    assert stored(6, rss(1, 5), rss(2, 5), mark) == [TREE, rss(1, 5)], "as it was before, but moved"
    assert stored(7, rss(1, 5), rss(3, 5)) == [TREE, rss(3, 5)], "a new one"
    assert stored(8, rss(1, 5), rss(3, 5), thin=False) == [TREE, rss(1, 5), rss(3, 5)]
    assert stored(9, rss(1, 5), rss(3, 5)) == [TREE]
    assert stored(10, rss(1, 5), rss(2, 5)) == [TREE, rss(2, 5)], "one that was gone meanwhile"


def test_what_a_collector_tells_to_be_new_is_stored_without_another_look():
    """In a full tick all of it; and what was stored by its word is not stored once more."""
    layouts = Layouts()
    first, second = (Reading(f"process:{n}", "rss_bytes", 5) for n in range(2))
    moved, gap = first._replace(value=6), Gap("process:1", "pss_bytes", "no-permission")

    def stored(tick, group):
        samples, events = layouts.sort_out("r", tick, [group], thin=tick > 1)
        assert not events
        return [(s.series.entity, s.series.metric, s.value) for s in Instants(samples)]

    assert stored(1, Steady([first, second, TREE, gap], [TREE])) == [
        first,
        second,
        TREE,
    ]
    assert stored(2, Steady([moved, second, TREE], [moved, TREE])) == [moved, TREE]
    assert stored(3, [moved, second, TREE]) == [TREE]
    assert stored(4, Steady([first, second, TREE], [first, TREE])) == [first, TREE]
    assert stored(5, [first, second, TREE]) == [TREE], "as at first, and stored anew in between"
    assert stored(6, [moved, second, TREE]) == [moved, TREE]
    layouts = Layouts()
    assert stored(7, Steady([first, second], [])) == [first, second], "nothing is stored before"


def test_one_that_moves_as_another_takes_the_place_of_a_third_is_stored():
    """As many readings as before, but not of the same processes."""
    layouts = Layouts()
    first, second, third = (Reading(f"process:{n}", "rss_bytes", 5) for n in range(3))
    layouts.sort_out("r", 1, [[first, second, TREE]])
    assert layouts.sort_out("r", 2, [[first, second]], thin=True) == ([], [])
    (sample,), _ = layouts.sort_out("r", 3, [[first._replace(value=6), third]], thin=True)
    assert [series.entity for series in sample.series] == ["process:0", "process:2"]


def test_the_first_tick_of_a_run_is_never_thin():
    """There is nothing stored that could stand for it."""
    layouts, found = Layouts(), Reading("process:1", "rss_bytes", 5)
    (sample,), _ = layouts.sort_out("r", 1, [[found]], thin=True)
    assert list(sample.values) == [5]
    assert layouts.sort_out("r", 2, [[found]], thin=True) == ([], [])


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
        layouts.sort_out("r", number, [many(f"m{number}_bytes", 1)])
    assert len(layouts._runs["r"].layouts) <= _MOST_LAYOUTS
    layouts.forget("r")
    assert not layouts._runs
