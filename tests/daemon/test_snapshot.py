"""The board: what is put together from what has changed is what all of it would give."""

from __future__ import annotations

import sys
import threading

from memplan_daemon.collectors.base import Gap, Reading
from memplan_daemon.snapshot import Board, RunInfo


def of(kind, found):
    return {(run, *i[:2]): i[2] for run, items in found for i in items if isinstance(i, kind)}


def alive(items, fresh, runs):
    return {
        key: value
        for key, value in items.items()
        if (key[0] is None or key[0] in runs)
        and (key[:2] in fresh or not key[1].startswith(("process:", "gpu:", "torch:")))
    }


def test_a_snapshot_is_what_all_readings_together_say(weather):
    """Whatever comes, goes and changes, seen in every tick or in one of several."""
    board = Board()
    layers = {"medium": [], "rare": []}
    for _ in range(400):
        due, fast = weather.blow(board)
        layers |= dict.fromkeys(due, fast)
        if weather.happens(0.3):
            continue
        fresh = {key[:2] for key in of(Reading, fast)}
        runs = weather.watched
        values = alive(of(Reading, layers["rare"]), fresh, runs)
        values |= alive(of(Reading, layers["medium"]), fresh, runs)
        values = {k: v for k, v in values.items() if k not in of(Gap, fast)} | of(Reading, fast)
        gaps = alive(of(Gap, layers["medium"]), fresh, runs) | of(Gap, fast)
        found = board.snapshot()
        assert (found.tick, found.runs) == (weather.tick, runs)
        assert found.values == values
        assert found.gaps == {key: gap for key, gap in gaps.items() if key not in values}


def test_a_number_that_cannot_be_read_any_more_is_a_gap_at_once():
    """Not what it was when slower readings were taken."""
    board, load = Board(), Reading("gpu:G", "utilization_percent", 5)
    used, gap = Reading("gpu:G", "used_bytes", 7), Gap("gpu:G", "used_bytes", "failed")
    board.publish(t_ns=1, tick=1, due=("medium", "rare"), found=[(None, [used, load])], runs={})
    assert board.snapshot().values[None, "gpu:G", "used_bytes"] == 7
    board.publish(t_ns=2, tick=2, due=(), found=[(None, [load, gap])], runs={})
    assert (None, "gpu:G", "used_bytes") not in board.snapshot().values
    assert board.snapshot().gaps == {(None, "gpu:G", "used_bytes"): "failed"}


def test_what_was_handed_out_does_not_change(weather):
    """Neither a snapshot nor the parts of a moment, while the board goes on."""
    board, kept = Board(), []
    for _ in range(100):
        weather.blow(board)
        one, moment = board.snapshot(), board.moment()
        parts = [(p, list(p.names), list(p.values), dict(p.gaps)) for p in moment.parts]
        kept.append((one, dict(one.values), dict(one.gaps), parts))
    for one, values, gaps, parts in kept:
        assert (one.values, one.gaps) == (values, gaps)
        assert all((p.names, p.values, p.gaps) == tuple(was) for p, *was in parts)


def test_what_stays_is_the_same_object():
    """A part in which nothing moved; the names of one in which only numbers did."""
    board = Board()
    still, runs = [Reading("tree", "rss_bytes", 1)], {"r": RunInfo(pid=1, uid=0)}
    parts = []
    for tick in (1, 2, 3):
        moving = [Reading("host", "used_bytes", tick), Reading("host", "swap_bytes", 5)]
        found = [(None, moving), ("r", list(still))]
        board.publish(t_ns=tick, tick=tick, due=(), found=found, runs=runs)
        parts.append({part.run: part for part in board.moment().parts})
    assert board.moment() is board.moment()
    assert parts[0]["r"] is parts[1]["r"] is parts[2]["r"]
    assert parts[0][None] is not parts[1][None]
    assert parts[0][None].names is parts[2][None].names


def test_a_rare_reading_is_shown_as_it_was_read():
    """Also when it was read again, as one of another pace, that then had nothing to say."""
    board, found = Board(), []
    ticks = ((("medium", "rare"), "a", 1), (("medium",), "a", 2), (("medium",), "b", 3))
    for tick, (due, metric, value) in enumerate(ticks, start=1):
        items = [(None, [Reading("host", metric, value)])]
        board.publish(t_ns=tick, tick=tick, due=due, found=items, runs={})
        found.append(board.snapshot().values)
    assert [values[None, "host", "a"] for values in found] == [1, 2, 1]


def test_many_may_ask_while_it_ticks():
    """Each sees one whole tick, and never an older one than before."""
    board, ended, wrong = Board(), threading.Event(), []

    def ask():
        last = 0
        while not ended.is_set():
            found = board.snapshot()
            host = {value for key, value in found.values.items() if key[1] == "tick"}
            if found.tick < last or host - {found.tick}:
                wrong.append((last, found.tick, host))
            last = found.tick

    threads = [threading.Thread(target=ask) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for tick in range(1, 500):
            found = [(None, [Reading("tick", f"n{i}_count", tick) for i in range(20)])]
            board.publish(t_ns=tick, tick=tick, due=(), found=found, runs={})
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not wrong
