"""memplan.serialize."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from factories import make_plan, make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import instances

from memplan import types
from memplan.errors import SchemaError
from memplan.serialize import dumps, load_file, loads, to_dict
from memplan.types import Comparison, Event, Footprint, FrozenMap, ModelSpec, Phase, Plan, Run

CORE = (ModelSpec, Footprint, Plan, Run, Phase, Event, Comparison)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@pytest.mark.parametrize("cls", CORE, ids=lambda cls: cls.__name__)
def test_a_round_trip_loses_nothing(cls, data):
    """loads(dumps(x)) == x for every core type, fields of newer versions included."""
    value = data.draw(instances(cls))
    assert loads(dumps(value), cls) == value


def test_a_newer_minor_version_is_read_and_its_fields_are_written_back():
    """Unknown fields survive at every depth."""
    document = to_dict(make_plan())
    document["schema"] = "memplan.plan/1.7"
    document["carbon"] = {"grams": 3}
    document["footprint"]["lines"][0]["confidence"] = 0.9
    again = to_dict(loads(json.dumps(document), Plan))
    assert again["carbon"] == {"grams": 3}
    assert again["footprint"]["lines"][0]["confidence"] == 0.9


def test_a_newer_major_version_is_refused_with_a_hint():
    """What this program cannot understand it does not guess."""
    document = to_dict(make_plan()) | {"schema": "memplan.plan/2"}
    with pytest.raises(SchemaError, match="another major version") as caught:
        loads(json.dumps(document), Plan)
    assert "upgrade" in caught.value.hint


def test_another_kind_of_document_is_refused():
    """A run is no plan."""
    with pytest.raises(SchemaError, match=r"expected a memplan\.plan document"):
        loads(dumps(make_run()), Plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": None}, "no schema tag"),
        ({"model": None}, r"memplan\.plan\.model"),
        ({"devices": {}}, "expected a list"),
        ({"created_ns": 1.5}, "expected int"),
        ({"created_ns": True}, "expected int"),
        ({"verdict": {"fits": "yes", "reason": ""}}, "expected bool"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(change, message):
    """The error says which field."""
    with pytest.raises(SchemaError, match=message):
        loads(json.dumps(to_dict(make_plan()) | change), Plan)


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", "null", "[" * 100_000])
def test_what_is_no_document_is_refused(text):
    """Damaged JSON is one clear error, however deep."""
    with pytest.raises(SchemaError):
        loads(text, Plan)


def test_totals_are_written_for_readers_and_never_read():
    """A lying total changes nothing."""
    document = to_dict(make_plan())
    expected = document["footprint"]["total_bytes"]
    document["footprint"]["total_bytes"] = 1
    plan = loads(json.dumps(document), Plan)
    assert plan.footprint.total_bytes == expected == sum(x.bytes for x in plan.footprint.lines)


def test_not_a_number_is_never_written():
    """NaN is no JSON."""
    plan = make_plan()
    speed = replace(plan.placement.decode_tokens_per_s, value=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        dumps(replace(plan, placement=replace(plan.placement, decode_tokens_per_s=speed)))


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path):
    """load_file raises SchemaError, not OSError."""
    with pytest.raises(SchemaError, match="cannot read"):
        load_file(tmp_path / "none.json", Plan)


def test_equal_maps_have_equal_hashes_whatever_their_order():
    """FrozenMap can be a key."""
    assert hash(FrozenMap({"a": 1, "b": 2})) == hash(FrozenMap({"b": 2, "a": 1}))


def test_every_core_type_is_there_when_it_is_named():
    """Those of plans are loaded then; another name is an error, not None."""
    for name in types.__all__:
        assert getattr(types, name) is not None
    with pytest.raises(AttributeError, match="Plans"):
        _ = types.Plans
