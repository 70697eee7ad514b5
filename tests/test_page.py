"""memplan.page: one run as one HTML page that stands alone and trusts nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from factories import T0, make_phase, make_plan, make_run, make_sample

from memplan.cli.main import run
from memplan.compare import compare
from memplan.page import html_page
from memplan.store.writer import LocalWriter
from memplan.types import Peak, Series
from memplan.units import MIB

S = 10**9
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
EMPTY = {"meta", "line", "rect", "polyline", "br"}


def page(**changes):
    """Return the page of a run with a curve; every text in it can be changed."""
    plan = changes.pop("plan", make_plan())
    found = make_run(**changes)
    series = Series(run_id="r-1", entity="tree", metric="hwm_bytes")
    peaks = (Peak(series=series, value=610 * MIB, t_ns=T0, count=3),)
    phases = [make_phase()]
    comparison = compare(plan, found, peaks=peaks, phases=phases)
    curve = [(T0 + i * S // 10, (300 + i % 310) * MIB) for i in range(600)]
    return html_page(comparison, plan=plan, phases=phases, curves={"cpu": curve}, unit="MiB")


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in their order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        self.links += [name for name, _ in attrs if name.startswith("on")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_has_the_verdict_the_parts_and_a_chart():
    """The facts of `memplan compare`, and the curve."""
    found = read(page())
    words = " ".join(" ".join(found.words).split())
    assert "Within plan: cpu peaked 22.00 MiB (3.7%) above its plan" in words
    for part in ("weights", "kv_cache", "activations", "overhead", "unaccounted"):
        assert part in words
    assert "polyline" in found.tags
    assert "By phase" in words


def test_the_page_loads_nothing():
    """No link, no script; its own policy forbids both."""
    text = page()
    found = read(text)
    assert found.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text


def test_hostile_text_stays_text():
    """In the command, the host, the id, the model, a source."""
    plan = make_plan(id=HOSTILE)
    lines = tuple(replace(line, source=HOSTILE) for line in plan.footprint.lines)
    plan = replace(
        plan,
        footprint=replace(plan.footprint, lines=lines),
        model=replace(plan.model, name=HOSTILE),
    )
    text = page(plan=plan, id=HOSTILE, command=("sh", HOSTILE), host=HOSTILE)
    found = read(text)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert found.links == []
    assert HOSTILE in "".join(found.words)


@pytest.fixture
def stored(home):
    with LocalWriter(home / "memplan.db") as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run())
        writer.save_phases([make_phase()])
        writer.write_samples(
            [make_sample((300 + i) * MIB, seconds=i / 10) for i in range(300)]
            + [make_sample(610 * MIB, seconds=30, metric="hwm_bytes")]
        )
    return home


def test_report_writes_the_page_and_not_over_another(stored, capsys):
    """Unless told to."""
    target = stored / "r.html"
    assert run(["report", "last", "--html", str(target)]) == 0
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert run(["report", "last", "--html", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["report", "last", "--html", str(target), "--force"]) == 0
    capsys.readouterr()
    assert run(["report", "last"]) == 0
    assert capsys.readouterr().out.endswith("</html>\n")


def test_show_draws_a_chart(stored, capsys):
    """With the plan's line and the device's peak."""
    assert run(["show", "last", "--chart", "--ascii", "--unit", "MiB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cpu: peak 599.00 MiB, plan 588.00 MiB")
    assert out.isascii()
    assert "----" in out
    assert "measured" in out


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path):
    """Headless Chromium lays it out and says nothing about errors."""
    browser = next((b for n in _BROWSERS if (b := shutil.which(n))), None)
    if browser is None:
        pytest.skip("no chromium here: apt install chromium")
    file = tmp_path / "page.html"
    file.write_text(page(), encoding="utf-8")
    shot = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400"]
    done = subprocess.run(
        [*command, f"--screenshot={shot}", file.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert shot.exists(), done.stderr[-2000:]
    assert shot.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr
