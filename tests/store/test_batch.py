"""Samples as columns: the same samples come out, whatever way they take."""

from __future__ import annotations

from factories import make_sample
from hypothesis import given
from hypothesis import strategies as st

from memplan.store.batch import Instant, Instants
from memplan.store.frame import Frame
from memplan.store.reader import StoreReader
from memplan.store.ring import Ring
from memplan.store.tick import pack_rows, singles
from memplan.store.writer import LocalWriter
from memplan.types import Sample, Series

SERIES = [Series(run_id=run, entity="tree", metric=m) for run in (None, "r-1") for m in "abc"]
SAMPLES = st.lists(
    st.builds(
        Sample, series=st.sampled_from(SERIES), t_ns=st.integers(0, 3), value=st.integers(0, 9)
    ),
    max_size=40,
)


@given(SAMPLES)
def test_samples_come_out_of_instants_as_they_went_in(samples):
    """In their order; an instant is of one run and one time, and has no series twice."""
    batch = Instants.of(samples)
    assert list(batch) == samples
    assert len(batch) == len(samples)
    assert list(batch[1:3]) == samples[1:3]
    for instant in batch.instants:
        assert len({series.run_id for series in instant.series}) == 1
        assert len(set(instant.series)) == len(instant.series) == len(instant.values)
    assert Instants.of(batch) is batch


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([(1, 2, 3), (1, 2), (3, 1), (4,), (1, 1, 2), (2, 3, 2, 2)]),
        ),
        max_size=12,
    )
)
def test_a_frame_of_instants_has_every_value_at_its_time(made):
    """Whatever series they have, in whatever order; one that comes twice makes another instant."""
    rows = [(t, ids, [10 * at + i for i in range(len(ids))]) for at, (t, ids) in enumerate(made)]
    parts = [part for row in rows for part in singles(row)]
    seqs = range(5, 5 + len(parts))
    frame = Frame.of_rows(parts, seqs)
    wanted = sorted((s, t, v) for t, ids, values in rows for s, v in zip(ids, values, strict=True))
    found = [
        (series, t, value)
        for series, column in frame.columns.items()
        for t, value in zip(frame.column_times(column), column.values, strict=True)
    ]
    assert sorted(found) == wanted
    assert frame.seqs == list(seqs)
    for column in frame.columns.values():
        places = column.index or list(range(len(frame.times)))
        assert places == sorted(set(places))
        assert (column.index is None) == (len(column.values) == len(frame.times))
    if rows:
        assert Frame.unpack(*pack_rows(parts, seqs)) == frame


def test_a_ring_drops_whole_instants_and_counts_their_samples():
    """The oldest first."""
    ring = Ring()
    three = Instant(1, tuple(SERIES[:3]), [1, 2, 3])
    assert ring.add(Instants([three, three._replace(t_ns=2)]), most=6) == 0
    assert [instant.t_ns for instant in ring.oldest(4)] == [1]
    assert [instant.t_ns for instant in ring.oldest(1)] == [1]
    assert ring.add([make_sample(7)], most=6) == 3
    assert (ring.samples, len(ring)) == (4, 2)


def test_the_same_tuple_of_series_is_stored_like_any_other(tmp_path):
    """Over several batches, with a series that joins in between, and beside plain samples."""
    always, joined = tuple(SERIES[3:5]), tuple(SERIES[3:])
    batches = [
        Instants(
            [Instant(t, joined if t == 2 else always, [t, 2 * t, 3 * t][: 3 if t == 2 else 2])]
        )
        for t in range(5)
    ]
    batches.insert(3, [Sample(series=SERIES[5], t_ns=2, value=9)])
    with LocalWriter(tmp_path / "m.db", flush_s=1000) as writer:
        for batch in batches:
            writer.stage_samples(batch)
    with StoreReader(tmp_path / "m.db") as reader:
        found = reader.samples("r-1").samples
    key = lambda s: (s.t_ns, s.series.metric, s.value)  # noqa: E731 - two lines of a test
    assert sorted(found, key=key) == sorted((s for b in batches for s in b), key=key)
