"""Who may do what, and what is not stored."""

from __future__ import annotations

import os

import pytest
from memplan_daemon.access import Limits, Peer, visible
from memplan_daemon.redact import redacted
from memplan_daemon.service import Service, Session
from memplan_daemon.settings import DaemonSettings, read_settings
from memplan_daemon.snapshot import RunInfo, Snapshot

from memplan.errors import DaemonError, UsageError

SNAPSHOT = Snapshot(
    t_ns=1,
    tick=1,
    values={
        (None, "host", "used_bytes"): 5,
        ("r-mine", "tree", "rss_bytes"): 7,
        ("r-mine", "process:10", "rss_bytes"): 7,
        ("r-1", "tree", "rss_bytes"): 20,
        ("r-2", "tree", "rss_bytes"): 30,
        ("r-2", "process:30", "rss_bytes"): 30,
        ("r-2", "gpu:G/tree", "used_bytes"): 4,
    },
    gaps={("r-2", "process:30", "pss_bytes"): "no-permission"},
    runs={
        "r-mine": RunInfo(pid=10, uid=1000),
        "r-1": RunInfo(pid=20, uid=1001),
        "r-2": RunInfo(pid=30, uid=None),
    },
)


def test_a_user_sees_own_runs_in_full_and_those_of_others_added_up():
    """No name, no process id, no run id of anybody else."""
    found = visible(SNAPSHOT, Peer(pid=1, uid=1000))
    assert [row[:2] for row in found["values"]] == [
        [None, "host"],
        ["r-mine", "tree"],
        ["r-mine", "process:10"],
    ]
    assert found["runs"] == {"r-mine": {"pid": 10, "uid": 1000}}
    assert found["gaps"] == []
    totals = {"tree rss_bytes": 50, "gpu:G/tree used_bytes": 4}
    assert found["others"] == {"runs": 2, "totals": totals}


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_the_owner_and_root_see_all(uid):
    """Nothing is added up for them."""
    found = visible(SNAPSHOT, Peer(pid=1, uid=uid))
    assert len(found["values"]) == len(SNAPSHOT.values)
    assert found["others"] == {"runs": 0, "totals": {}}


@pytest.fixture
def service():
    class Nothing:
        def __getattr__(self, name):
            raise AssertionError(name)

    class Clock:
        def wall_ns(self):
            return 0

    return Service(
        writer=Nothing(), sampler=Nothing(), clock=Clock(), database="x", kind="daemon", stop=None
    )


@pytest.mark.parametrize(
    "operation",
    ["stop", "save_run", "write_samples", "watch", "unwatch", "watch_add", "watch_list", "reload"],
)
def test_a_guest_may_only_look(service, operation):
    """Everything that changes something is the owner's, and root's."""
    guest = Session(Peer(pid=1, uid=os.geteuid() + 12345))
    with pytest.raises(DaemonError, match="for the owner"):
        service.handle({"op": operation}, guest)
    assert service.handle({"op": "ping"}, guest)["kind"] == "daemon"


def test_connections_are_counted_by_user():
    """One user cannot take the places of all."""
    limits = Limits(most=3, most_each=2)
    assert [limits.enter(uid) for uid in (1, 1, 1, 2, 2)] == [True, True, False, True, False]
    limits.leave(1)
    assert limits.enter(2)
    assert not limits.enter(1)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["a", "--token", "x"], ["a", "--token", "***"]),
        (["a", "--token=x"], ["a", "--token=***"]),
        (["a", "--db-password", "x", "y"], ["a", "--db-password", "***", "y"]),
        (["a", "--api_key", "--verbose"], ["a", "--api_key", "--verbose"]),
        (["env", "HF_TOKEN=x", "a"], ["env", "HF_TOKEN=***", "a"]),
        (["a", "postgresql://me:pw@host/db"], ["a", "postgresql://me:***@host/db"]),
        (["a", "https://h/x?access_token=abc&y=1"], ["a", "https://h/x?access_token=***&y=1"]),
        (["a", "hf_ABCDEFGHIJKLMN"], ["a", "***"]),
        (["a", "x=sk-abcdefghijkl"], ["a", "x=***"]),
        (["python", "train.py", "--lr", "1e-4"], ["python", "train.py", "--lr", "1e-4"]),
        ([], []),
    ],
)
def test_what_looks_like_a_secret_is_hidden(words, shown):
    """Options, assignments, URLs, and the forms of well-known tokens."""
    assert list(redacted(words)) == shown


def test_settings_are_read_together(monkeypatch):
    """From the environment here; the command line's rules come on top."""
    monkeypatch.setenv("MEMPLAN_WATCH", "name:a, user:0")
    monkeypatch.setenv("MEMPLAN_PROMETHEUS", "9400")
    monkeypatch.setenv("MEMPLAN_CPU_BUDGET", "0.5")
    found = read_settings(interval_s=2.0, rules=("gpu:all",))
    assert [rule.text for rule in found.rules] == ["name:a", "user:0", "gpu:all"]
    assert (found.prometheus, found.cpu_share, found.interval_s) == (("127.0.0.1", 9400), 0.005, 2)
    monkeypatch.delenv("MEMPLAN_PROMETHEUS")
    assert read_settings().prometheus is None
    assert isinstance(found, DaemonSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROMETHEUS", "0.0.0.0:9400"),
        ("PROMETHEUS", "example.org:9400"),
        ("PROMETHEUS", "99999"),
        ("PROMETHEUS", "x"),
        ("CPU_BUDGET", "much"),
        ("INTERVAL", "-1"),
        ("STORE_COMMANDS", "perhaps"),
        ("OTLP", "localhost:4318"),
        ("GROUP", "no-such-group-here"),
        ("WATCH", "nonsense"),
        ("FLEET_OUTBOX", "much"),
        ("KEEP_RAW", "soon"),
        ("DATABASE_CAP", "-"),
    ],
)
def test_a_bad_setting_is_refused(monkeypatch, name, value):
    """Above all one that would listen to the world."""
    monkeypatch.setenv(f"MEMPLAN_{name}", value)
    with pytest.raises(UsageError):
        read_settings()


def test_a_bad_setting_that_is_overridden_is_told(home, monkeypatch):
    """By the command line, or by what is stronger than the file; it would count one day."""
    file = home / "config" / "memplan" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('interval = "fast"\ncpu_budget = "much"\nkeep_raw = "2h"\n')
    monkeypatch.setenv("MEMPLAN_CPU_BUDGET", "2")
    found = read_settings(interval_s=2.0)
    assert (found.interval_s, found.cpu_share) == (2.0, 0.02)
    assert found.problems == (
        f"{file}: interval, which is overridden, is bad: interval is not a number: 'fast'",
        f"{file}: cpu_budget, which is overridden, is bad: cpu_budget is not a number: 'much'",
    )
    with pytest.raises(UsageError, match="interval is not a number"):
        read_settings()
