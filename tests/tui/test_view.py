"""memplan_tui's pure parts: lines, words, layers, tracks, poller, and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from factories import T0, make_plan, make_run, make_sample
from hypothesis import given
from hypothesis import strategies as st
from memplan_tui.lines import Column, cut, length, plain, table, text
from memplan_tui.messages import Machine, Request, Snapshot
from memplan_tui.poller import Poller, database_text
from memplan_tui.themes import DEFAULT, TERMINAL, THEMES, choose, role_styles
from memplan_tui.tracks import Track, Tracks
from memplan_tui.views.layers import layer_homes, layer_map
from memplan_tui.views.states import note
from memplan_tui.views.words import Look, ago, command_line, number, sampler
from tui_stage import big_plan

from memplan.cli.main import run
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
from memplan.types import Series
from memplan.units import MIB

S = 10**9


def poller_on(path):
    return Poller(path, open_reader=StoreReader, now_ns=lambda: T0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "3 s ago"),
        (600, "10 min ago"),
        (7200, "2 h ago"),
        (10**6, "11 days ago"),
        (-5, "0 s ago"),
    ],
)
def test_times_are_told_in_words(seconds, words):
    """A clock that jumped back is no negative time."""
    assert ago(seconds * S) == words


def test_what_is_not_available_is_not_zero():
    """N/A."""
    assert number(None, "GiB") == "N/A"


@pytest.mark.parametrize(
    ("last", "words", "command"),
    [
        (None, "nothing sampled yet", True),
        (T0 - 2 * S, "sampling", False),
        (T0 - 21 * S, "sampling", False),
        (T0 - 37 * S, "last sample 37 s ago", True),
    ],
)
def test_a_stale_sampler_is_said_to_be_stale(last, words, command):
    """With the command that starts it."""
    snapshot = Snapshot(state="ok", now_ns=T0, last_sample_ns=last, machine=Machine(total_bytes=1))
    assert sampler(snapshot)[0].startswith(words)
    said = note(snapshot)
    assert ("memplan daemon start" in text([said or []])) == command


def test_what_the_sampler_does_is_said_on_the_live_screen_alone():
    """A finished run beside its plan needs no daemon."""
    snapshot = Snapshot(state="ok", now_ns=T0, last_sample_ns=T0 - 99 * S)
    assert note(snapshot) is not None
    assert note(snapshot, need="compare") is None


def test_a_lost_database_says_first_what_is_shown():
    """The reason comes last: it is what a narrow window cuts."""
    kept = Snapshot(state="missing", kept=True, now_ns=T0, reason="there is no " + "x" * 99)
    assert "Database gone. Shown is what was read at " in text([note(kept, need="runs")])[:60]


def test_a_command_is_shown_without_the_folder_of_its_program():
    """Sixty characters of a virtual environment tell nobody anything."""
    run = make_run(command=("/opt/venv/bin/python", "-m", "train", "/data/x y"))
    assert command_line(run) == "python -m train '/data/x y'"
    assert command_line(make_run(command=())) == "''"


def test_one_memory_for_cpu_and_gpu_is_said_once():
    """A plan on unified memory has no host of its own, and nobody set that."""
    plan = make_plan()
    gpu = replace(plan.devices[0], name="cuda:0", kind="gpu")
    work = replace(plan.workload, assumed=("host_memory",))
    shared = replace(plan, devices=(gpu,), workload=work)
    from memplan_tui.assemble import detail_at

    detail = detail_at(make_run(), shared, Tracks("r-1"), (), (), at_ns=T0, window_ns=None)
    snapshot = Snapshot(state="ok", now_ns=T0, last_sample_ns=T0, detail=detail)
    assert "share one memory" in text([note(snapshot) or []])


COLUMNS = (
    Column(label="device", width=6, right=False),
    Column(label="planned", width=7, drop=2),
    Column(label="measured", width=8, drop=1),
    Column(label="command", width=7, right=False, free=True),
)


@given(st.integers(16, 90), st.lists(st.tuples(*[st.text("ab1", max_size=12)] * 4), max_size=4))
def test_a_heading_is_whole_or_absent(width, rows):
    """Columns without room are dropped whole, the highest number first; rows stay aligned."""
    lines = table(COLUMNS, rows, width)
    head = text(lines[:1])
    shown = head.split()
    assert set(shown) <= {"device", "planned", "measured", "command"}
    assert "device" in shown
    assert "command" in shown
    if "planned" in shown:
        assert "measured" in shown


def test_numbers_are_never_cut():
    """A column grows with its numbers; only free text is shortened."""
    lines = table(COLUMNS, [("cuda:0", "123456789.0", "1.0", "python train.py --long " * 5)], 60)
    assert "123456789.0" in text(lines)
    assert text(lines).splitlines()[1].endswith("…")
    assert all(length(line) <= 60 for line in lines)
    assert cut("abc", 0) == ""


def test_ascii_has_no_accents_and_no_boxes():
    """Each character becomes one."""
    words = "┄ Execução ─ █▒·…↑→▸ é"
    assert plain("Execução ─█·↑") == "Execucao -#.^"
    assert plain(words).isascii()


def test_layers_are_shown_on_their_devices():
    """One row a device, one column a layer; what lies outside of layers in words."""
    plan = big_plan()
    layers, others = layer_homes(plan.placement.device_map)
    assert len(layers) == 12
    assert others == {"model.embed_tokens": "cuda:0", "lm_head": "disk"}
    lines = text(layer_map(plan, Look(unit="MiB"), 100)).splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines[2:5]}
    assert rows["cuda:0"] == "█" * 7 + "·" * 5
    assert rows["cpu"] == "·" * 7 + "█" * 4 + "·"
    assert rows["disk"] == "·" * 11 + "█"
    assert "embed_tokens → cuda:0 · lm_head → disk" in lines[-1]


def test_a_layer_on_two_devices_is_half_on_each():
    """Neither claims it."""
    layers, _ = layer_homes({"model.layers.0.a": "cpu", "model.layers.0.b": "disk"})
    assert layers == [{"cpu", "disk"}]


SAMPLES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 10**12)), min_size=1).map(sorted)


@given(SAMPLES, st.integers(-10, 1010))
def test_a_track_knows_now_and_peak_at_any_time(samples, at):
    """As a plain search over the list finds them."""
    track = Track()
    for t, value in samples:
        track.add(t, value)
    before = [value for t, value in samples if t <= at]
    peak = track.peak(Series(run_id=None, entity="e", metric="m"), at)
    assert (peak.value if peak else None) == max(before, default=None)
    index = track.last(at)
    assert (track.values[index] if index is not None else None) == (before[-1] if before else None)


@given(st.lists(st.integers(0, 10**9), min_size=30, max_size=300))
def test_thinning_keeps_peak_and_count(values):
    """Memory does not grow with the run; what it peaked at stays."""
    track = Track()
    for t, value in enumerate(values):
        track.add(t, value)
        track.thin(20)
    assert len(track.times) <= 20
    peak = track.peak(Series(run_id=None, entity="e", metric="m"), len(values))
    assert peak.value == max(values)
    assert peak.count == len(values)


def test_a_longer_window_has_the_machines_older_samples(tmp_path):
    """In buckets, their extremes kept; new samples then follow one by one."""
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        for i in range(600):
            host = {"run_id": None, "entity": "host", "seconds": i}
            value = 10**6 if i == 77 else i
            writer.write_samples([make_sample(value, metric="used_bytes", **host)])
    now = [T0 + 600 * S]
    source = Poller(path, open_reader=StoreReader, now_ns=lambda: now[0])
    short = source.poll(Request(window_ns=60 * S)).machine
    assert max(value for _, value in short.history["cpu"]) == 599
    whole = source.poll(Request(window_ns=None)).machine
    assert whole.history["cpu"][0][0] == T0
    assert max(value for _, value in whole.history["cpu"]) == 10**6
    assert whole.peaks["cpu"] == 10**6
    with LocalWriter(path) as writer:
        host = {"run_id": None, "entity": "host", "seconds": 601}
        writer.write_samples([make_sample(5, metric="used_bytes", **host)])
    now[0] += S
    assert source.poll(Request(window_ns=None)).machine.history["cpu"][-1] == (T0 + 601 * S, 5)
    source.close()


def test_a_password_in_a_database_url_is_not_shown():
    """Only where it is."""
    assert database_text("postgresql://me:secret@db/x") == "postgresql://...@db/x"
    assert database_text("a/b.db") == "a/b.db"


def test_plain_prints_the_same_facts_and_ends(home, capsys):
    """For pipes and screen readers: no braille, no boxes."""
    assert run(["tui", "--plain"]) == 0
    assert "memplan run -- COMMAND" in capsys.readouterr().out
    with LocalWriter(home / "memplan.db") as writer:
        writer.save_run(make_run(plan_id=None))
        writer.write_samples([make_sample(620 * MIB)])
    assert run(["tui", "--plain", "--unit", "MiB"]) == 0
    out = capsys.readouterr().out
    assert "620.0" in out
    assert not any(char in out for char in "█─╌⣀")


def test_a_first_screen_loads_no_types_of_plans():
    """They take longer to make than all else of ours."""
    words = ["memplan.cli.tui", "memplan.cli.whatif", "memplan_tui.app", "memplan.store.reader"]
    code = f"import sys, {', '.join(words)}; print([m for m in sys.modules if 'types.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "memplan.types.run" in done.stdout
    for later in ("plan", "model", "workload"):
        assert f"memplan.types.{later}" not in done.stdout


def dashboard(**environ):
    return subprocess.run(
        [sys.executable, "-m", "memplan", "tui"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environ},
    )


def test_without_a_terminal_comes_the_plain_report_and_a_hint():
    """It would draw into a file forever."""
    done = dashboard()
    assert done.returncode == 2
    assert "There is no database yet." in done.stdout
    assert "memplan tui --plain" in done.stderr


def test_the_language_follows_the_locale():
    """LANG, unless the setting says otherwise."""
    assert "Ainda não há banco de dados." in dashboard(LANG="pt_BR.UTF-8", LC_ALL="").stdout
    english = dashboard(LANG="pt_BR.UTF-8", LC_ALL="", MEMPLAN_LANGUAGE="en").stdout
    assert "There is no database yet." in english


def test_few_colours_mean_the_terminals_own():
    """Unless a theme is asked for."""
    assert choose("auto", {}) == TERMINAL
    assert choose("auto", {"COLORTERM": "truecolor"}) == DEFAULT
    assert choose("memplan-light", {}) == "memplan-light"
    assert choose("memplan-light", {"NO_COLOR": "1"}) == TERMINAL
    assert choose("memplan-light", {"NO_COLOR": ""}) == "memplan-light"


def test_text_has_enough_contrast_in_every_theme():
    """At least 4.5 to 1 for every role that carries text (WCAG 2.1, 1.4.3)."""

    def light(colour):
        parts = [part / 255 for part in colour.get_truecolor()]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    from rich.color import Color

    for theme in THEMES:
        if theme.ansi:
            continue
        for role, style in role_styles(theme).items():
            if role == "rule":
                continue
            back = light(style.bgcolor or Color.parse(theme.background))
            bright, dark = sorted((light(style.color), back), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (theme.name, role)


def test_every_role_has_a_style_without_colour():
    """A piece without a style crashes the library's grey filter."""
    for theme in THEMES:
        roles, grey = role_styles(theme), role_styles(theme, colour=False)
        assert set(roles) == set(grey)
        assert all(style.color is None and style.bgcolor is None for style in grey.values())


POINT = st.tuples(st.integers(0, 50), st.integers(-5, 9))


@given(st.lists(st.lists(POINT, min_size=1, max_size=9), max_size=5))
def test_a_column_at_once_is_as_sample_by_sample(batches):
    """Whether the clock goes on or jumps back."""
    at_once, one_by_one = Track(), Track()
    for batch in batches:
        at_once.extend([t for t, _ in batch], [value for _, value in batch])
        for t, value in batch:
            one_by_one.add(t, value)
    for name in Track.__slots__:
        assert getattr(at_once, name) == getattr(one_by_one, name)
