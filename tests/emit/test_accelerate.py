"""The plan carried out: accelerate loads by our map and nothing changes but the memory."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
from checkpoints import save_tiny

from memplan.emit.accelerate import files, native_map
from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.placement.assign import assign
from memplan.placement.loads import ledgers
from memplan.placement.mapping import device_map
from memplan.placement.plan import make_plan
from memplan.placement.units import cut
from memplan.types import Device, Footprint, FrozenMap
from memplan.units import MIB

pytestmark = pytest.mark.models


def half_on_disk(spec):
    """Return a plan that keeps about half of the weights on the host.

    The model is smaller than the bands of its activations and overhead, so those are left out:
    only the weights have to find a place.
    """
    plan = make_plan(spec, complete({"context": 40}, spec), [host(1 << 40)], baseline=MIB)
    weights = Footprint(lines=tuple(x for x in plan.footprint.lines if x.part == "weights"))
    devices = [
        host(spec.weight_bytes // 2),
        Device(name="disk", kind="disk", capacity_bytes=1 << 40),
    ]
    pieces = cut(spec)
    assignment = assign(spec, plan.workload, weights, pieces, devices)
    placement = replace(plan.placement, device_map=device_map(pieces, assignment.where))
    books = ledgers(devices, assignment.lines)
    assert all(ledger.free_bytes >= 0 for ledger in books)
    return replace(plan, placement=placement, devices=books)


def host(size):
    return Device(name="cpu", kind="cpu", capacity_bytes=size)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_from_pretrained_takes_the_map_and_generates_the_same_tokens(tmp_path, kind):
    """A Llama, a tied Gemma and a Mixtral, half of each on disk."""
    import torch
    import transformers

    folder = save_tiny(tmp_path / "model", kind)
    spec = resolve(str(folder), exact_modules=True)
    plan = half_on_disk(spec)
    assert set(plan.placement.device_map.values()) == {"cpu", "disk"}
    tokens = torch.arange(3, 19).reshape(1, -1)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = whole.generate(tokens, **options)
    placed = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        device_map=native_map(plan.placement.device_map),
        offload_folder=str(tmp_path / "offload"),
    )
    on_disk = {name for name, p in placed.named_parameters() if p.device.type == "meta"}
    assert on_disk
    assert torch.equal(placed.generate(tokens, **options), expected)
    resident = sum(
        p.numel() * p.element_size() for p in placed.parameters() if p.device.type == "cpu"
    )
    assert resident == plan.devices[0].parts["weights"]


def test_the_written_loader_loads(tmp_path):
    """load.py beside accelerate.json, as `memplan emit` writes them."""
    folder = save_tiny(tmp_path / "model", "llama")
    spec = resolve(str(folder), exact_modules=True)
    plan = half_on_disk(spec)
    written = files(plan, spec)
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    settings = json.loads(written["accelerate.json"])
    assert settings["max_memory"]["cpu"] == plan.devices[0].parts["weights"]
    found = importlib.util.spec_from_file_location("load", tmp_path / "load.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    model = module.load()
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}


def test_a_model_of_the_hub_is_loaded_at_the_commit_that_was_planned(tmp_path):
    """Its id and its revision are two arguments of from_pretrained."""
    spec = resolve(str(save_tiny(tmp_path / "model", "llama")), exact_modules=True)
    plan = half_on_disk(spec)
    model = replace(plan.model, source="hub", path="acme/tiny@" + "c" * 40)
    settings = json.loads(files(replace(plan, model=model), spec)["accelerate.json"])
    assert (settings["model"], settings["revision"]) == ("acme/tiny", "c" * 40)


def test_a_map_that_misses_a_parameter_is_refused(tmp_path):
    """Accelerate would take it and fail late."""
    folder = save_tiny(tmp_path / "model", "llama")
    spec = resolve(str(folder), exact_modules=True)
    plan = make_plan(spec, complete({}, spec), [host(1 << 40)])
    keys = {k: v for k, v in plan.placement.device_map.items() if k != "lm_head"}
    broken = replace(plan, placement=replace(plan.placement, device_map=FrozenMap(keys)))
    with pytest.raises(UsageError, match=r"lm_head\.weight"):
        files(broken, spec)


def test_a_plan_by_file_names_is_completed_with_the_buffers_it_could_not_see(tmp_path):
    """Mixtral by headers: the rotary module is added on the main device."""
    folder = save_tiny(tmp_path / "model", "mixtral")
    spec = resolve(str(folder))
    assert not spec.exact_modules
    plan = make_plan(spec, complete({}, spec), [host(1 << 40)])
    built = resolve(str(folder), exact_modules=True)
    settings = json.loads(files(plan, built)["accelerate.json"])
    assert settings["device_map"]["model.rotary_emb"] == "cpu"
