"""memplan.placement.beside: other planners' maps charged by the same rules as ours."""

from __future__ import annotations

import pytest

from memplan.footprint.defaults import complete
from memplan.models.catalog import find_model
from memplan.placement.beside import map_beside, optimum_beside, place_of, room_for_weights
from memplan.placement.plan import make_plan
from memplan.types import Device
from memplan.units import GIB


@pytest.fixture(scope="module")
def llama():
    return find_model("llama-3.1-8b")


def machine(*sizes):
    gpus = [
        Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=size * GIB)
        for i, size in enumerate(sizes)
    ]
    return (*gpus, Device(name="cpu", kind="cpu", capacity_bytes=64 * GIB))


def planned(spec, devices):
    return make_plan(spec, complete({}, spec), devices)


def test_the_room_of_a_plan_is_what_weights_and_buffer_may_take(llama):
    """Ours fill it, never exceed it."""
    plan = planned(llama, machine(10))
    items = plan.devices[0].items
    room = room_for_weights(plan)["cuda:0"]
    assert items["weights"] + items["reload_buffer"] <= room
    assert room + items["kv_cache"] < 10 * GIB


def test_our_own_map_is_no_different_from_the_plan(llama):
    """The same bytes, and it runs."""
    devices = machine(10)
    plan = planned(llama, devices)
    row = map_beside("same", llama, plan, plan.placement.device_map, devices)
    assert row.difference_bytes == 0
    assert row.runs
    assert row.resident_bytes == plan.devices[0].items["weights"]


def test_a_map_that_forgets_the_buffer_does_not_run(llama):
    """All but the output matrix resident: a matrix of 1 GB has to be copied there."""
    devices = machine(10)
    plan = planned(llama, devices)
    mapping = {f"model.layers.{i}": "cuda:0" if i < 14 else "cpu" for i in range(32)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb")
    mapping |= {**dict.fromkeys(rest, "cuda:0"), "lm_head": "cpu"}
    row = map_beside("greedy", llama, plan, mapping, devices)
    assert not row.runs
    assert "lacks" in row.note
    nowhere = map_beside("host", llama, plan, {"": "cpu"}, devices)
    assert "cuda:0 stays unused" in nowhere.note
    assert nowhere.resident_bytes == 0


def test_places_are_found_by_the_nearest_name():
    """The module, what is above it, or what is inside it."""
    mapping = {"a.b": "cpu", "a.c.x": "disk"}
    assert place_of("a.b.w", mapping) == "cpu"
    assert place_of("a.c", mapping) == "disk"
    assert place_of("z", {"": "cuda:0"}) == "cuda:0"


@pytest.mark.parametrize("sizes", [(10,), (5, 7), (4, 6, 5)])
def test_the_optimum_is_hardly_better_than_the_plan(llama, sizes):
    """Within 0.2 % of the model, on one GPU and on several unlike ones."""
    pytest.importorskip("scipy")
    devices = machine(*sizes)
    plan = planned(llama, devices)
    row = optimum_beside(llama, plan, devices)
    assert plan.placement.streamed_bytes_per_token
    assert abs(row.difference_bytes) <= 0.002 * llama.weight_bytes


@pytest.mark.models
def test_accelerate_makes_a_map_in_the_same_room(llama):
    """It keeps less, and its map covers every module."""
    from memplan.models.rivals import accelerate_map

    devices = machine(10)
    plan = planned(llama, devices)
    mapping = accelerate_map(llama, room_for_weights(plan))
    row = map_beside("accelerate", llama, plan, mapping, devices)
    assert set(mapping.values()) == {"cuda:0", "cpu"}
    assert row.difference_bytes > 0
