"""Follows the samples of a run, or of the machine: the newest at once, older ones after them."""

from __future__ import annotations

from memplan_tui.tracks import Tracks

from memplan.store.base import ColumnBatch, Reader

__all__ = ["Follower"]

RECENT_NS = 5 * 10**9
"""The newest samples are read one by one; of many, the older ones come in buckets."""

BUCKETS = 400
"""Of one curve: two in each column of a wide chart."""

WHOLE_SAMPLES = 30_000
"""A run that has no more is read sample by sample."""

TRIES = 5
"""How often peaks are read anew because samples came meanwhile."""


class Follower:
    """Tracks that grow with what is stored. For a run they know its peaks from the first look."""

    def __init__(self, run_id: str | None) -> None:
        """Read nothing yet.

        Args:
            run_id: whose samples; None = the machine's own.
        """
        self.run_id = run_id
        self.tracks = Tracks(run_id)
        self._cursor = 0
        self._since_ns: int | None = None
        self.settled = False
        """Is all there that will ever be."""

    def glance(self, reader: Reader) -> None:
        """Read the newest samples, and for a run its peaks: little, whatever is stored."""
        span = reader.span_ns(self.run_id)
        if span is not None:
            self._add(reader.columns(self.run_id, since_ns=span[1] - RECENT_NS))
            self._learn(reader)

    def read(self, reader: Reader, since_ns: int, *, ended: bool = False) -> None:
        """Read what is new; when it was not read back to a time before, all of that, too.

        Args:
            reader: of the database.
            since_ns: how far back curves go.
            ended: nothing will come any more.
        """
        if self._since_ns is None or since_ns < self._since_ns:
            self._read_back(reader, since_ns)
        elif not self.settled:
            self._go_on(reader)
        self.settled = ended

    def _read_back(self, reader: Reader, since_ns: int) -> None:
        span = reader.span_ns(self.run_id)
        if span is None:
            return
        self.tracks, self._cursor, self._since_ns = Tracks(self.run_id), 0, since_ns
        whole = self._is_small(reader)
        begin = max(span[0], since_ns)
        recent = None if whole else max(span[1] - RECENT_NS, min(begin, span[1]))
        batch = reader.columns(self.run_id, since_ns=recent)
        until = min((times[0] for times, _ in batch.columns.values()), default=span[1] + 1)
        if whole and batch.columns:
            self._since_ns = 0
        elif begin < until:
            self.tracks.add_curves(
                reader.curves(self.run_id, since_ns=begin, until_ns=until, buckets=BUCKETS)
            )
        self._add(batch)
        self._learn(reader)

    def _is_small(self, reader: Reader) -> bool:
        if self.run_id is None:
            return False
        return sum(peak.count for peak in reader.peaks(self.run_id)) <= WHOLE_SAMPLES

    def _go_on(self, reader: Reader) -> bool:
        """Read what came since the last time; tell whether anything did."""
        came = False
        while True:
            batch = reader.columns(self.run_id, after=self._cursor)
            self._add(batch)
            came = came or bool(batch.columns)
            if not batch.more:
                return came

    def _add(self, batch: ColumnBatch) -> None:
        self.tracks.add(batch.columns)
        self._cursor = max(batch.cursor, self._cursor)

    def _learn(self, reader: Reader) -> None:
        """Take over a run's peaks: of just those samples that were read, and of all before."""
        if self.run_id is None:
            return
        for _ in range(TRIES):
            peaks = reader.peaks(self.run_id)
            if not self._go_on(reader):
                break
        self.tracks.know(peaks)
