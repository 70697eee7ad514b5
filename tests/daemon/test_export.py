"""Prometheus and OpenTelemetry: the newest readings, nothing more, and nobody listens unasked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from memplan_daemon.collectors.base import Gap, Reading
from memplan_daemon.export import Exporters
from memplan_daemon.sampler import Sampler
from memplan_daemon.tree import Group

from memplan.errors import DaemonError, MissingDependencyError
from memplan.testing import ManualClock

pytest.importorskip("prometheus_client")
HOSTILE = 'a"b\\c\nd{}=,é'


class Fixed:
    """Reads what it is given."""

    def __init__(self):
        self.host = [Reading("host", "used_bytes", 7), Reading("host", "oom_kill_count", 2)]
        self.run = []

    def collect(self, watch):
        return list(self.host if watch.run_id is None else self.run)


class FakeGpus:
    """Names and states of devices."""

    def __init__(self):
        self.states = {"GPU-a": "ok", HOSTILE: "late"}
        self.names = {"GPU-a": HOSTILE, HOSTILE: "x"}


@pytest.fixture
def fixed():
    return Fixed()


@pytest.fixture
def sampler(fixed, writer, proc):
    proc.add(10, rss=1)
    made = Sampler(
        clock=ManualClock(),
        collectors=[fixed],
        writer=writer,
        interval_s=1.0,
        host_interval_s=1.0,
        proc=proc.folder,
    )
    group = Group(proc.folder)
    group.wanted = {10}
    made.watch_group("r-1", group)
    yield made
    made.close()


@pytest.fixture
def exporters(sampler):
    made = Exporters(sampler, [FakeGpus()])
    yield made
    made.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port(exporters):
    chosen = free_port()
    exporters.apply(("127.0.0.1", chosen), "")
    return chosen


@pytest.fixture
def get(port):
    def ask(path="/metrics", **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    return ask


def parsed(text):
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_values_are_in_base_units_and_counters_are_counters(get, sampler, fixed):
    """Bytes, seconds, watts, ratios."""
    fixed.host += [
        Reading("host", "stall_some_microseconds", 1_500_000),
        Reading("gpu:GPU-a", "power_milliwatts", 250_500),
        Reading("gpu:GPU-a", "utilization_percent", 37),
        Reading("gpu:GPU-a", "sm_clock_megahertz", 1980),
        Gap("gpu:GPU-a", "temperature_celsius", "not-supported"),
    ]
    fixed.run = [Reading("tree", "rss_bytes", 9), Reading("gpu:GPU-a/tree", "used_bytes", 4)]
    sampler.tick()
    found = parsed(get())
    assert found["memplan_host_used_bytes", ()] == 7
    assert found["memplan_host_oom_kill_total", ()] == 2
    assert found["memplan_host_stall_some_seconds_total", ()] == 1.5
    gpu = (("gpu", "GPU-a"),)
    assert found["memplan_gpu_power_watts", gpu] == 250.5
    assert found["memplan_gpu_utilization_ratio", gpu] == 0.37
    assert found["memplan_gpu_sm_clock_hertz", gpu] == 1.98e9
    assert found["memplan_run_rss_bytes", (("run", "r-1"),)] == 9
    assert found["memplan_run_gpu_used_bytes", (("gpu", "GPU-a"), ("run", "r-1"))] == 4
    missing = [k for k in found if k[0] == "memplan_missing"]
    assert dict(missing[0][1])["reason"] == "not-supported"


def test_a_dead_process_vanishes_with_the_next_scrape(get, sampler, fixed):
    """And a GPU that is silent shows no old number."""
    fixed.run = [Reading("process:10", "rss_bytes", 9), Reading("process:11", "rss_bytes", 8)]
    fixed.host.append(Reading("gpu:GPU-a", "used_bytes", 5))
    sampler.tick()
    assert 'pid="11"' in get()
    fixed.run.pop()
    fixed.host.pop()
    sampler._clock.advance(1)
    sampler.tick()
    text = get()
    assert 'pid="11"' not in text
    assert "memplan_gpu_used_bytes" not in text


def test_every_metric_has_its_help_and_its_type(get, sampler, fixed):
    """As promtool asks for, where that is not installed; read by the official parser."""
    from prometheus_client.parser import text_string_to_metric_families

    fixed.run = [Reading("tree", "rss_bytes", 9), Reading("process:10", "hwm_bytes", 1)]
    sampler.tick()
    families = list(text_string_to_metric_families(get()))
    assert len(families) > 8
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert family.type in ("gauge", "counter"), family.name
        for sample in family.samples:
            assert sample.name == family.name + "_total" * (family.type == "counter")
    names = [family.name for family in families]
    assert len(names) == len(set(names))


def test_hostile_names_are_escaped_and_come_back_as_they_were(get, sampler):
    """Quotes, backslashes and newlines in what a driver says."""
    sampler.tick()
    found = parsed(get())
    assert found["memplan_gpu_info", (("gpu", "GPU-a"), ("name", HOSTILE))] == 1
    assert found["memplan_gpu_up", (("gpu", HOSTILE),)] == 0


def test_promtool_finds_nothing_to_complain_about(get, sampler, fixed):
    """Debian's own checker, where it is installed (or named by PROMTOOL)."""
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    fixed.host += [
        Reading("host", "stall_full_microseconds", 5),
        Reading("gpu:GPU-a", "power_milliwatts", 5),
        Reading("gpu:GPU-a", "nvlink_tx_bytes", 5),
        Reading("gpu:GPU-a", "ecc_corrected_count", 5),
        Reading("gpu:GPU-a", "pcie_tx_bytes_per_second", 5),
        Reading("daemon", "cpu_microseconds", 5),
    ]
    fixed.run = [
        Reading("tree", "processes_count", 1),
        Reading("process:10", "hwm_bytes", 1),
        Reading("process:10/gpu:GPU-a", "used_bytes", 1),
        Reading("torch:cuda:0", "peak_allocated_bytes", 1),
        Reading("torch:cuda:0", "ooms_count", 1),
        Reading("cgroup", "limit_bytes", 1),
        Reading("workload", "tokens_count", 1),
    ]
    sampler.tick()
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=get(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_hundred_scrapes_at_once_cost_one_rendering(get, sampler, monkeypatch):
    """Each gets the whole text, or is told to come again."""
    sampler.tick()
    first = get()

    def once(_):
        try:
            return get()
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(once, range(100)))
    assert set(answers) <= {first, 503}
    assert answers.count(first) >= 32


def test_health_readiness_unknown_paths_and_other_names(get, sampler):
    """Ready once it has sampled; a browser that was led here by another name gets nothing."""
    assert get("/-/healthy") == "ok\n"
    for path, code, headers in (
        ("/-/ready", 503, {}),
        ("/secret", 404, {}),
        ("/metrics", 403, {"Host": "evil.example"}),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(path, **headers)
        assert caught.value.code == code
        caught.value.close()
    sampler.tick()
    assert get("/-/ready") == "ok\n"


def listening():
    """Return the TCP ports at which this process listens, by the kernel."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, _, port = words[1].rpartition(":")
                found.add((address, int(port, 16)))
    return found


def test_nothing_listens_unless_asked_and_then_on_this_machine_only(exporters):
    """By the kernel's own tables; and no more after it was switched off."""
    before = listening()
    exporters.apply(None, "")
    assert listening() == before
    port = free_port()
    exporters.apply(("127.0.0.1", port), "")
    assert listening() - before == {("0100007F", port)}
    exporters.apply(None, "")
    assert listening() == before


def test_a_port_that_is_taken_is_said_and_what_ran_goes_on(exporters):
    """A reload with a bad port changes nothing."""
    port = free_port()
    exporters.apply(("127.0.0.1", port), "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(DaemonError, match="cannot listen"):
            exporters.apply(other.getsockname(), "")
    urllib.request.urlopen(f"http://127.0.0.1:{port}/-/healthy", timeout=10).close()


def by_the_client(sampler, gpus):
    """Return what the official client writes of a snapshot: lines by what stands above them."""
    from memplan_daemon.export.families import family_of, others, place
    from prometheus_client import core, exposition

    families = {}
    for (run, entity, metric), value in sampler.board.snapshot().values.items():
        where = place(run, entity)
        if where is None or (found := family_of(where[0], where[1], metric)) is None:
            continue
        family, factor = found
        families.setdefault(family.name, family).series.append((where[2], value * factor))
    metrics = []
    for family in (*families.values(), *others(sampler, sampler.board.moment(), gpus)):
        kind = core.CounterMetricFamily if family.counter else core.GaugeMetricFamily
        metrics.append(kind(family.name, family.help, labels=family.labels))
        for labels, value in family.series:
            metrics[-1].add_metric(labels, value)

    class Collected:
        collect = staticmethod(lambda: metrics)

    return by_family(exposition.generate_latest(Collected()).decode())


def by_family(text):
    """Return the series below each header, in no order: name and labels, and the number."""
    found = {}
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP"):
            header = line
        elif line.startswith("# TYPE"):
            assert (header, line) not in found
            lines = found[header, line] = []
        else:
            name, _, number = line.rpartition(" ")
            lines.append((name, float(number)))
    return {header: sorted(lines) for header, lines in found.items() if lines}


def test_the_text_is_what_the_official_client_writes_of_all_of_it(sampler, weather):
    """Whatever comes, goes and changes: it is written anew only where it moved."""
    from memplan_daemon.export.prometheus import _Renderer

    gpus = [FakeGpus()]
    renderer = _Renderer(sampler, gpus)
    series = 0
    for _ in range(250):
        weather.blow(sampler.board)
        sampler.counts.ticks += 1
        if weather.happens(0.3):
            continue
        found = by_family(renderer.text().decode())
        assert found == by_the_client(sampler, gpus)
        series = max(series, sum(map(len, found.values())))
    assert series > 60


def test_what_is_no_text_does_not_end_the_scrapes(get, sampler, fixed):
    """Half a character in a name is a question mark."""
    fixed.host.append(Reading("gpu:G\udcff", "used_bytes", 5))
    sampler.tick()
    assert parsed(get())["memplan_gpu_used_bytes", (("gpu", "G?"),)] == 5


def test_without_the_client_the_missing_package_is_named(exporters, monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError) as caught:
        exporters.apply(("127.0.0.1", free_port()), "")
    assert "memplan[prometheus]" in caught.value.hint
    assert not [t for t in threading.enumerate() if t.name == "memplan-prometheus"]


def test_opentelemetry_gets_the_conventions_names(sampler, fixed):
    """GPU memory by hw.*, runs by memplan's own names, each with its labels."""
    metrics = pytest.importorskip("opentelemetry.sdk.metrics.export")
    from memplan_daemon.export.otel import OtelExporter

    fixed.host += [
        Reading("gpu:GPU-a", "used_bytes", 5),
        Reading("gpu:GPU-a", "total_bytes", 50),
        Reading("gpu:GPU-a", "utilization_percent", 37),
    ]
    fixed.run = [Reading("tree", "rss_bytes", 9), Reading("torch:cuda:0", "allocated_bytes", 3)]
    sampler.tick()
    reader = metrics.InMemoryMetricReader()
    exporter = OtelExporter("", sampler, reader)
    document = json.loads(reader.get_metrics_data().to_json())
    found = {
        (metric["name"], point["value"], tuple(sorted(point["attributes"].items())))
        for scope in document["resource_metrics"][0]["scope_metrics"]
        for metric in scope["metrics"]
        for point in metric["data"]["data_points"]
    }
    exporter.close()
    gpu = (("hw.id", "GPU-a"), ("hw.type", "gpu"))
    assert ("hw.gpu.memory.usage", 5, gpu) in found
    assert ("hw.gpu.memory.limit", 50, gpu) in found
    assert ("hw.gpu.utilization", 0.37, gpu) in found
    assert ("memplan.host.memory.usage", 7, ()) in found
    assert ("memplan.run.memory.usage", 9, (("memplan.run", "r-1"),)) in found
    torch = (("memplan.device", "cuda:0"), ("memplan.run", "r-1"))
    assert ("memplan.run.torch.allocated", 3, torch) in found
