"""memplan_tui.view, poller and the command: the same facts as plain text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from factories import T0, make_run, make_sample
from memplan_tui import poller as polling
from memplan_tui.messages import Machine, Snapshot
from memplan_tui.poller import Poller, database_text
from memplan_tui.themes import THEMES
from memplan_tui.view import ago, machine_lines, number, sampler_text

from memplan.cli.main import run
from memplan.store.reader import StoreReader
from memplan.store.writer import LocalWriter
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
    """n/a."""
    assert number(None, "GiB") == "n/a"
    assert "n/a" in machine_lines(Machine(), "GiB", 80)[0]


@pytest.mark.parametrize(
    ("last", "text", "well"),
    [
        (None, "nothing sampled yet", False),
        (T0 - 2 * S, "sampling", True),
        (T0 - 37 * S, "last sample 37 s ago", False),
    ],
)
def test_a_stale_sampler_is_said_to_be_stale(last, text, well):
    """With the command that starts it."""
    words, good = sampler_text(Snapshot(state="ok", now_ns=T0, last_sample_ns=last))
    assert words.startswith(text)
    assert good == well
    assert well or "memplan daemon start" in words


def test_only_new_samples_are_read(tmp_path):
    """The cursor moves; the curve grows by what is new."""
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        writer.save_run(make_run(plan_id=None))
        writer.write_samples([make_sample(5)])
        source = poller_on(path)
        assert source.poll().detail.history["cpu"] == ((T0, 5),)
        cursor = source._cursor
        writer.write_samples([make_sample(7, seconds=1)])
        assert source.poll().detail.history["cpu"] == ((T0, 5), (T0 + S, 7))
        assert source._cursor == cursor + 1
    source.close()


def test_a_long_run_keeps_few_points_and_its_peak(tmp_path, monkeypatch):
    """Memory does not grow with the run."""
    monkeypatch.setattr(polling, "KEPT_POINTS", 64)
    path = tmp_path / "m.db"
    with LocalWriter(path) as writer:
        writer.save_run(make_run(plan_id=None))
        samples = [make_sample(i % 100, seconds=i) for i in range(1000)]
        samples[777] = make_sample(5000, seconds=777)
        for sample in samples:
            writer.write_samples([sample])
    source = poller_on(path)
    detail = source.poll().detail
    assert len(detail.history["cpu"]) <= 64
    assert max(value for _, value in detail.history["cpu"]) == 5000
    assert detail.peaks[0].value == 5000
    assert detail.peaks[0].count == 1000
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
    assert out.isascii() or "·" in out


def test_without_a_terminal_the_dashboard_is_refused_with_a_hint():
    """It would draw into a file forever."""
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "tui"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert "memplan tui --plain" in done.stderr


def test_text_has_enough_contrast_in_every_theme():
    """At least 4.5 to 1 for every colour that carries text (WCAG 2.1, 1.4.3)."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in THEMES:
        back = light(theme.background)
        for colour in (
            theme.primary,
            theme.foreground,
            theme.success,
            theme.error,
            theme.secondary,
        ):
            bright, dark = sorted((light(colour), back), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (theme.name, colour)
