"""Daemons that are killed by the dozen: each forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from memplan_daemon.collectors.host import HostCollector
from memplan_daemon.daemon import run_daemon
from memplan_daemon.settings import read_settings

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["daemon_processes", "memplan.store.writer", "pytest"])


def start(work, *arguments):
    """Let a function of this module work in a process of its own; return that."""
    environment = {n: v for n, v in os.environ.items() if n.startswith(("MEMPLAN_", "XDG_"))}
    process = _CONTEXT.Process(target=_run, args=(work, environment, arguments), daemon=True)
    process.start()
    return process


def _run(work, environment, arguments):
    os.environ.update({"MEMPLAN_FLUSH": "0", **environment})
    work(*arguments)


def sample(database, interval_s):
    """Be a daemon."""
    run_daemon(database, lambda: read_settings(interval_s=interval_s))


def sample_until(database, interval_s, flag):
    """Be a daemon whose host collector hangs from the moment on in which a file is there."""
    read = HostCollector.collect

    def collect(self, watch):
        while Path(flag).exists():
            time.sleep(0.05)
        return read(self, watch)

    HostCollector.collect = collect
    sample(database, interval_s)
