"""The sampler: collectors, the background daemon, its socket, and running a command under it."""

from __future__ import annotations

import logging

__all__: list[str] = []

# `memplan run` shares the terminal with its command: only the daemon sets up a log.
logging.getLogger("memplan.daemon").addHandler(logging.NullHandler())
