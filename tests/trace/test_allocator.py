"""The caching allocator on paper: each rule by hand, and what must hold for any stream."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.trace.allocator import replay
from memplan.trace.record import Recording
from memplan.trace.settings import AllocatorSettings, parse_settings
from memplan.trace.snapshot import snapshot, write_snapshot
from memplan.units import MIB


def stream(*steps):
    """Return a recording: a size is a birth, ~n ends the n-th."""
    recording = Recording()
    recording.begin("forward 1")
    for step in steps:
        if step < 0:
            recording.end(~step)
        else:
            recording.add(step, "layer", "aten.mm.default")
    return recording


def test_small_requests_share_segments_of_2_mib_and_take_512_bytes_at_least():
    """Two requests, one segment."""
    done = replay(stream(1, 513))
    assert (done.allocated_bytes, done.reserved_bytes, done.segments) == (1536, 2 * MIB, 1)


@pytest.mark.parametrize(
    ("wanted", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB + 1, 12 * MIB),
    ],
)
def test_the_size_of_a_segment_follows_the_request(wanted, segment):
    """2 MiB, 20 MiB, or its own up to the next 2 MiB."""
    assert replay(stream(wanted)).reserved_bytes == segment


def test_a_freed_block_is_used_again_and_the_smallest_that_fits_is_taken():
    """The second request of 12 MiB takes nothing new; that of 30 MiB fits in no block."""
    done = replay(stream(12 * MIB, ~0, 12 * MIB, 30 * MIB))
    assert done.reserved_bytes == 42 * MIB
    best = replay(stream(40 * MIB, 12 * MIB, ~0, ~1, 12 * MIB, 40 * MIB))
    assert best.reserved_bytes == 52 * MIB


def test_what_is_left_over_is_split_off_and_joined_again():
    """A large block is split only when more than 1 MiB is left."""
    joined = replay(stream(40 * MIB, ~0, 10 * MIB, 30 * MIB, ~1, ~2, 40 * MIB))
    assert joined.reserved_bytes == 40 * MIB
    whole = replay(stream(40 * MIB, ~0, 39 * MIB))
    assert whole.allocated_bytes == 40 * MIB


def test_large_blocks_stay_whole_where_a_limit_says_so():
    """max_split_size: no small piece of a block beyond it."""
    limit = AllocatorSettings(max_split_size_bytes=32 * MIB)
    done = replay(stream(64 * MIB, ~0, 12 * MIB), limit)
    assert done.reserved_bytes == 76 * MIB


def test_cached_segments_are_given_back_before_memory_runs_out():
    """Then it is tried again, and only then it fails, with who asked."""
    room = AllocatorSettings(capacity_bytes=64 * MIB)
    done = replay(stream(40 * MIB, ~0, 60 * MIB), room)
    assert done.oom is None
    assert (done.retries, done.reserved_at_end) == (1, 60 * MIB)
    failed = replay(stream(40 * MIB, 60 * MIB), room)
    assert failed.oom is not None
    assert (failed.oom.bytes, failed.oom.event, failed.oom.module) == (60 * MIB, 1, "layer")
    assert failed.oom.operator == "aten.mm.default"


def test_empty_cache_gives_back_what_is_free():
    """Whole segments alone."""
    steps = (40 * MIB, ~0, 12 * MIB, 100)
    assert replay(stream(*steps)).reserved_at_end == 42 * MIB
    assert replay(stream(*steps), emptied={2}).reserved_at_end == 14 * MIB


def test_an_expandable_segment_grows_by_pages_and_wastes_less():
    """A freed stretch at its end is grown instead of a new segment being made."""
    grow = AllocatorSettings(expandable_segments=True)
    done = replay(stream(30 * MIB, ~0, 50 * MIB), grow)
    assert done.reserved_bytes == 60 * MIB
    assert replay(stream(30 * MIB, ~0, 50 * MIB)).reserved_bytes == 80 * MIB


SIZES = st.integers(1, 64 * MIB)


@st.composite
def streams(draw):
    """A recording with any births and ends, everything ended at last."""
    recording = Recording()
    recording.begin("forward 1")
    alive = []
    for _ in range(draw(st.integers(1, 40))):
        if alive and draw(st.booleans()):
            recording.end(alive.pop(draw(st.integers(0, len(alive) - 1))))
        else:
            alive.append(recording.add(draw(SIZES), "", "aten.mm.default"))
    for number in alive:
        recording.end(number)
    return recording


@given(streams(), st.booleans(), st.sampled_from([None, 32 * MIB]))
def test_more_is_reserved_than_allocated_and_more_allocated_than_asked_for(
    recording, expandable, limit
):
    """And no two live blocks overlap; what is free at the end can all be given back."""
    settings = AllocatorSettings(expandable_segments=expandable, max_split_size_bytes=limit)
    done = replay(recording, settings, log=True)
    assert done.reserved_bytes >= done.allocated_bytes >= recording.peak()[0]
    live = {}
    for entry in done.log:
        if entry.action == "alloc":
            end = entry.address + entry.size
            assert all(end <= a or entry.address >= a + size for a, size in live.items())
            live[entry.address] = entry.size
        elif entry.action == "free":
            assert live.pop(entry.address) == entry.size
    assert not live
    last = len(recording.events)
    recording.add(1, "", "aten.mm.default")
    emptied = replay(recording, settings, emptied={last})
    assert emptied.reserved_at_end == 2 * MIB


@given(streams(), st.integers(64, 512), st.booleans())
def test_a_capacity_is_never_exceeded(recording, mebibytes, expandable):
    """It fails instead."""
    room = AllocatorSettings(capacity_bytes=mebibytes * MIB, expandable_segments=expandable)
    assert replay(recording, room).reserved_bytes <= mebibytes * MIB


def test_settings_are_read_from_the_text_that_torch_reads():
    """Unknown keys and senseless values are errors."""
    found = parse_settings(
        "expandable_segments:True,max_split_size_mb:128, roundup_power2_divisions:4,"
        "garbage_collection_threshold:0.8,backend:native"
    )
    assert found.expandable_segments
    assert found.max_split_size_bytes == 128 * MIB
    assert found.rounded(1300 * 1024) == 1280 * 1024 + 256 * 1024
    for text in ("max_split:1", "max_split_size_mb:x", "expandable_segments:yes"):
        with pytest.raises(UsageError):
            parse_settings(text)


@pytest.mark.models
def test_a_snapshot_is_one_that_torchs_own_viewer_reads(tmp_path):
    """Segments, and a plot of the trace."""
    from torch.cuda import _memory_viz as viewer

    recording = stream(40 * MIB, 100, ~0, 12 * MIB)
    for name in ("step.pickle", "step.json"):
        write_snapshot(tmp_path / name, recording)
    with (tmp_path / "step.pickle").open("rb") as file:
        value = pickle.load(file)
    assert "segments" in json.loads((tmp_path / "step.json").read_text("utf-8"))
    assert value == snapshot(recording)
    assert sum(segment["total_size"] for segment in value["segments"]) == 42 * MIB
    assert sum(segment["allocated_size"] for segment in value["segments"]) == 12 * MIB + 512
    assert "40.0MiB" in viewer.segsum(value)
    assert "html" in viewer.trace_plot(value)
    with pytest.raises(UsageError, match=r"step\.txt"):
        write_snapshot(tmp_path / "step.txt", recording)
