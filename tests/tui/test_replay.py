"""Replay: a clock that plays, pauses, steps and jumps, and the screens as they were then."""

from __future__ import annotations

import pytest
from factories import T0
from hypothesis import given
from hypothesis import strategies as st
from memplan_tui.clock import SPEEDS, Replay, parse_time
from memplan_tui.messages import Request
from memplan_tui.replay import load_recording
from tui_stage import S, app_on, fill, until

from memplan.cli.main import run
from memplan.store.reader import StoreReader
from memplan.units import MIB

CLOCK = Replay(start_ns=T0, end_ns=T0 + 100 * S, at_ns=T0)


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    path = tmp_path / "m.db"
    monkeypatch.setenv("MEMPLAN_DATABASE", str(path))
    fill(path)
    return path


@given(st.lists(st.sampled_from(["play", "step", "back", "jump", "fast", "slow", "toggle"])))
def test_the_clock_never_leaves_its_window(keys):
    """Whatever is pressed."""
    clock = CLOCK
    for i, key in enumerate(keys):
        clock = {
            "play": lambda c: c.advanced(7 * S),
            "step": lambda c: c.stepped(1),
            "back": lambda c: c.stepped(-1),
            "jump": lambda c, i=i: c.jumped(T0 + (i - 3) * 40 * S),
            "fast": lambda c: c.faster(1),
            "slow": lambda c: c.faster(-1),
            "toggle": lambda c: c.toggled(),
        }[key](clock)
        assert clock.start_ns <= clock.at_ns <= clock.end_ns
        assert clock.speed in SPEEDS


def test_the_clock_plays_at_its_speed_and_stops_at_the_end():
    """Played again from the begin."""
    clock = CLOCK.faster(1)
    assert clock.advanced(3 * S).at_ns == T0 + 6 * S
    done = clock.advanced(500 * S)
    assert (done.at_ns, done.playing) == (T0 + 100 * S, False)
    again = done.toggled()
    assert (again.at_ns, again.playing) == (T0, True)
    assert not CLOCK.stepped(1).playing


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("90s", 90),
        ("1min", 60),
        ("50%", 50),
        ("+30s", 40),
        ("-4s", 6),
        ("08:53:30", 10),
        ("08:54", 40),
        ("25:00", None),
        ("soon", None),
        ("", None),
    ],
)
def test_times_are_typed_as_people_say_them(typed, seconds, monkeypatch):
    """From the begin, from the position, as a share, as a time of day."""
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    clock = CLOCK.jumped(T0 + 10 * S)
    expected = None if seconds is None else T0 + seconds * S
    assert parse_time(typed, clock) == expected


def test_a_recording_shows_what_was_known_then(database):
    """No sample, phase or end from later."""
    with StoreReader(database) as reader:
        recording = load_recording(reader, "r-1")
    clock = recording.clock()
    assert (clock.start_ns, clock.end_ns) == (T0, T0 + 60 * S)
    early = recording.poll(Request(at_ns=T0 + 2 * S)).detail
    assert early.run.status == "running"
    assert early.now["cpu"] == (300 + 310 * 4 // 40) * MIB
    assert [(p.name, p.ended_ns) for p in early.phases] == [("load", None)]
    assert all(t <= T0 + 2 * S for t, _ in early.history["cpu"])
    late = recording.poll(Request(at_ns=T0 + 60 * S)).detail
    assert late.run.status == "finished"
    assert late.comparison.devices[0].peak_bytes == 610 * MIB
    assert recording.peak_ns("cpu") == T0 + 20 * S
    with StoreReader(database) as reader:
        machine = load_recording(reader, None)
    assert machine.clock().end_ns == T0 + 119 * S
    assert machine.poll(Request(at_ns=T0 + 3 * S)).machine.history["cpu"][-1][0] == T0 + 3 * S


async def test_the_same_screens_with_another_clock(database):
    """Play, pause, step, jump to the peak, to a time, to the ends, and back to now."""
    app = app_on(database)
    async with app.run_test(size=(120, 30), notifications=True) as pilot:
        await until(app, "used by all")
        await pilot.press("greater_than_sign")
        await until(app, "Only in a replay")
        await pilot.press("o")
        await until(app, "run r-1")
        await pilot.press("r")
        await until(app, "REPLAY")
        await pilot.press("space")
        await until(app, "paused")
        await pilot.press("home")
        await until(app, "REPLAY 08:53:20")
        await pilot.press("full_stop", "full_stop")
        await until(app, "REPLAY 08:53:22")
        await pilot.press("plus")
        await until(app, "x2")
        await pilot.press("p")
        await until(app, "REPLAY 08:53:40")
        await pilot.press("g")
        await until(app, "Go to: 14:03:22")
        await pilot.press(*"10s", "enter")
        await until(app, "REPLAY 08:53:30")
        await pilot.press("3")
        await until(app, "Compare   run r-1 · running")
        await pilot.press("end")
        await until(app, "run r-1 · finished")
        await pilot.press("r")
        await until(app, lambda text: "REPLAY" not in text)


async def test_a_replay_can_be_asked_for_at_the_start(database):
    """`memplan tui --replay FILE` begins with the file's newest run."""
    app = app_on(database, replay="")
    async with app.run_test(size=(120, 30)):
        await until(app, "REPLAY")
        await until(app, "run r-1")


async def test_a_recorded_file_is_replayed_where_its_database_is_not(database, tmp_path):
    """`memplan record FILE`, the file taken elsewhere, `memplan tui --replay FILE`."""
    file = tmp_path / "taken.db"
    assert run(["record", str(file), "--run", "r-1"]) == 0
    app = app_on(file, replay="")
    async with app.run_test(size=(120, 30)) as pilot:
        await until(app, "REPLAY")
        await pilot.press("space", "end")
        text = await until(app, "100%")
        assert "run r-1" in text
        assert "610.0" in text  # its peak
