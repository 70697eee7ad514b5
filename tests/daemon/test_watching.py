"""What the daemon watches by itself, and which runs come of it."""

from __future__ import annotations

import pytest
from memplan_daemon.collectors.process import ProcessCollector
from memplan_daemon.runbook import RunBook
from memplan_daemon.sampler import Sampler
from memplan_daemon.watching import Watches, parse_rule

from memplan.errors import StoreError, UsageError
from memplan.testing import ManualClock
from memplan.wire import job_of


class World:
    """A fake /proc, a sampler, and the rules."""

    def __init__(self, proc, writer):
        self.proc, self.writer, self.clock = proc, writer, ManualClock()
        self.gpu = {}
        self.sampler = Sampler(
            clock=self.clock,
            collectors=[ProcessCollector(self.clock)],
            writer=writer,
            interval_s=1.0,
            proc=proc.folder,
        )
        self.book = RunBook(writer, self.clock)
        self.watches = Watches(
            sampler=self.sampler,
            book=self.book,
            proc=proc.folder,
            gpu_pids=lambda uuid: {p for p, g in self.gpu.items() if uuid in (None, g)},
        )

    def follow(self, *rules):
        self.watches.replace([parse_rule(rule) for rule in rules])
        self.tick()

    def tick(self):
        self.clock.advance(1)
        self.sampler.tick()

    def groups(self):
        """Return the watched processes, one sorted list per run."""
        return sorted(sorted(group.members) for group in self.sampler._groups.values())


@pytest.fixture
def world(proc, writer):
    proc.add(10, rss=100, name="python3", uid=1000, cgroup="/jobs/a/x")
    proc.add(11, 10, rss=50, name="python3", uid=1000, cgroup="/jobs/a/x")
    proc.add(20, rss=70, name="vllm", uid=1001, cgroup="/docker-1f0e2b3c4d5e6f70.scope")
    proc.add(30, rss=9, name="sh", uid=0, cgroup="/jobs/ab")
    return World(proc, writer)


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        ("pid:10", [[10, 11]]),
        ("name:python*", [[10, 11]]),
        ("name:vll?", [[20]]),
        ("user:1000", [[10, 11]]),
        ("cgroup:/jobs/a", [[10, 11]]),
        ("cgroup:/jobs", [[10, 11], [30]]),
        ("container:1f0e2b3c", [[20]]),
        ("gpu:all", [[11], [20]]),
        ("gpu:GPU-b", [[20]]),
        ("name:nobody", []),
    ],
)
def test_each_kind_of_rule_chooses_its_processes(world, rule, runs):
    """A process and its chosen descendants are one run."""
    world.gpu = {11: "GPU-a", 20: "GPU-b", 999: "GPU-b"}
    world.follow(rule)
    assert world.groups() == runs


def test_a_new_process_on_a_gpu_is_listed_before_it_is_given_to_a_run(world):
    """A child belongs to its parent's run, also when the last listing did not know it."""
    world.sampler._table._shortest_ns = 3600 * 10**9
    chosen = {20}
    world.watches._gpu_pids = lambda uuid: chosen
    world.follow("gpu:all")
    listings = world.sampler._table.number
    world.proc.add(21, 20, rss=5)
    chosen = {20, 21}
    world.tick()
    world.tick()
    assert world.groups() == [[20, 21]]
    assert world.sampler._table.number == listings + 1
    chosen = {20, 21, 999}
    for _ in range(5):
        world.tick()
    assert world.sampler._table.number == listings + 2, "one that is nowhere is looked for once"
    chosen = {20}
    world.tick()
    assert world.groups() == [[20]]
    assert world.sampler._table.number == listings + 2, "to leave needs no listing"


def test_processes_are_listed_rarely_where_gpus_alone_choose_them(world):
    """As soon as another rule is there, or a tree is followed, it is not so."""
    world.sampler._table._shortest_ns = 5 * 10**9

    def listings(seconds):
        before = world.sampler._table.number
        for _ in range(seconds):
            world.tick()
        return world.sampler._table.number - before

    world.gpu = {20: "GPU-b"}
    world.follow("gpu:all")
    assert listings(30) == 1
    world.watches.add(parse_rule("name:sh"))
    assert listings(30) in {6, 7}
    world.watches.remove("name:sh")
    assert listings(30) in {1, 2}
    world.sampler.watch(10, "r-tree")
    assert listings(30) in {6, 7}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pid:",
        "pid:x",
        "pid:0",
        "name:",
        "user:no-such-user",
        "colour:red",
        "container:xyz",
        ":1",
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_an_example(text):
    """One line, and what it may look like."""
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert caught.value.hint


def test_ranks_of_a_job_are_one_run_and_their_workers_belong_to_it(world, proc):
    """Two launchers, one job id; a worker without it belongs to its parent's run."""
    for pid in (40, 50):
        proc.add(pid, rss=10, name="train", environ={"TORCHELASTIC_RUN_ID": "j1", "RANK": str(pid)})
    proc.add(41, 40, rss=5, name="train")
    proc.add(60, rss=5, name="train", environ={"TORCHELASTIC_RUN_ID": "j2"})
    world.follow("name:train")
    assert world.groups() == [[40, 41, 50], [60]]
    runs = [run for run in world.writer.saved if run.status == "running"]
    assert sorted(run.versions["job"] for run in runs) == ["torchrun:j1", "torchrun:j2"]
    assert {run.versions["watch"] for run in runs} == {"name:train"}


def test_what_memplan_run_watches_is_left_to_it(world, proc):
    """No double count."""
    proc.add(40, rss=10, name="train", environ={"MEMPLAN_RUN": "r-1"})
    world.follow("name:train")
    assert world.groups() == []


def test_a_run_grows_shrinks_and_ends_with_its_last_process(world, proc):
    """It is stored as running, then as finished."""
    world.follow("name:python*")
    proc.add(12, 11, rss=5, name="python3")
    world.tick()
    assert world.groups() == [[10, 11, 12]]
    for pid in (10, 11, 12):
        proc.remove(pid)
    world.tick()
    world.tick()
    assert world.groups() == []
    assert [run.status for run in world.writer.saved] == ["running", "finished"]
    assert world.writer.saved[-1].ended_ns is not None
    final = [s.series.entity for s in world.writer.samples if s.series.metric == "final_rss_bytes"]
    assert sorted(final) == ["process:10", "process:11", "process:12"]


def test_a_process_that_moves_into_a_group_is_found_later(world, proc):
    """It was looked at before: it is looked at again after some listings."""
    world.follow("cgroup:/late")
    proc.add(30, rss=9, name="sh", cgroup="/late")
    for _ in range(13):
        world.tick()
    assert world.groups() == [[30]]


def test_a_rule_that_is_removed_ends_its_runs_and_a_reload_keeps_what_was_added(world):
    """`memplan watch add` lasts until the daemon ends."""
    world.follow("name:python*")
    world.watches.add(parse_rule("name:vllm"))
    world.follow("user:0")
    assert world.groups() == [[20], [30]]
    world.watches.remove("name:vllm")
    assert world.groups() == [[30]]
    with pytest.raises(UsageError, match="not watched"):
        world.watches.remove("name:vllm")


def test_a_run_that_the_store_refuses_is_offered_again(world):
    """A full disk at the wrong moment loses no run."""
    world.writer.error = StoreError("full")
    world.follow("name:python*")
    assert world.writer.saved == []
    world.writer.error = None
    world.tick()
    assert [run.status for run in world.writer.saved] == ["running"]


def test_command_lines_are_stored_only_where_asked_for_and_without_secrets(world, proc):
    """The program's name otherwise; the environment never."""
    words = ("python3", "train.py", "--token", "hf_abcdefghij", "--lr", "1e-4")
    environ = {"AWS_SECRET_ACCESS_KEY": "x"}
    proc.add(10, rss=100, name="python3", command=words, environ=environ)
    world.follow("name:python3")
    assert world.writer.saved[0].command == ("python3",)
    world.follow()
    world.book.store_commands = True
    world.follow("name:python3")
    run = world.writer.saved[-1]
    assert run.command == ("python3", "train.py", "--token", "***", "--lr", "1e-4")
    assert "AWS" not in repr(run)


def test_a_reused_process_id_is_another_process_in_the_same_run(world, proc):
    """Its series have a label of their own: 11#2."""
    world.follow("name:python*")
    proc.remove(11)
    proc.add(11, 10, rss=7, name="python3")
    world.tick()
    found = {s.series.entity for s in world.writer.batches[-1]}
    assert {"process:10", "process:11#2"} <= found


def test_no_more_runs_than_a_bound(world, proc, monkeypatch, caplog):
    """A rule that chooses everything is told once."""
    monkeypatch.setattr("memplan_daemon.watching.MOST_RUNS", 3)
    for pid in range(100, 120):
        proc.add(pid, rss=1, name="many")
    world.follow("name:many")
    world.tick()
    assert len(world.groups()) == 3
    assert len([r for r in caplog.records if "more than 3 runs" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "none"}, None),
        ({"TORCHELASTIC_RUN_ID": "x"}, "torchrun:x"),
        ({"SLURM_JOB_ID": "7"}, "slurm:7.0"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, "slurm:7.2"),
        ({"RAY_JOB_ID": "01"}, "ray:01"),
        ({"MASTER_ADDR": "h", "MASTER_PORT": "1"}, "master:h:1"),
        ({"MASTER_ADDR": "h"}, None),
    ],
)
def test_a_job_is_known_by_its_ranks_environment(environ, job):
    """Torchrun's default id is every job's, and so is none."""
    assert job_of(environ) == job
