"""memplan.placement.engines, fills and cost: what each way of offloading reads, keeps and costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.formats.quantized import parse_scheme
from memplan.models.catalog import find_model
from memplan.models.quantize import quantize
from memplan.placement.assign import by_lookup
from memplan.placement.beside import place_of
from memplan.placement.cost import decode_speed, prefill_speed, speeds
from memplan.placement.engines import PROFILES, profile_of
from memplan.placement.fills import filled
from memplan.placement.plan import make_plan
from memplan.placement.solve import fill_one
from memplan.placement.units import Unit, cut
from memplan.types import Device
from memplan.units import GIB, MIB


def gpu(size, index=0, **more):
    return Device(name=f"cuda:{index}", kind="gpu", capacity_bytes=size, **more)


def host(size, **more):
    return Device(name="cpu", kind="cpu", capacity_bytes=size, **more)


@pytest.fixture(scope="module")
def llama():
    return find_model("llama-3.1-8b")


@pytest.fixture(scope="module")
def mixtral():
    return find_model("mixtral-8x7b-v0.1")


def planned(spec, devices, **options):
    return make_plan(spec, complete(options, spec), devices)


def layered(count, parts, *, block=True):
    """Units of a model: for each layer one unit per (size in MiB, share that a token uses)."""
    units = []
    for layer in range(count):
        for i, (size, share) in enumerate(parts):
            units.append(
                Unit(
                    names=(f"layers.{layer}.m{i}",),
                    layer=layer,
                    block=f"layers.{layer}" if block else None,
                    position=len(units),
                    weight_bytes=size * MIB,
                    active_bytes=int(size * share) * MIB,
                    buffer_bytes=0,
                    reload_bytes=size * MIB,
                    tensors=(),
                )
            )
    return units


@pytest.mark.parametrize("budget", [15.3e9, 15.9e9])
def test_llama_8b_needs_no_streaming_with_the_embedding_on_the_host(llama, budget):
    """16.06 GB of weights in 15.3 and 15.9 GB: all but the table of 1.05 GB, and no buffer."""
    units = cut(llama)
    assert sum(unit.weight_bytes for unit in units) > budget
    fill = by_lookup(units, int(budget), {})
    (table,) = [unit for unit in units if unit.position not in fill.resident]
    assert table.names == ("model.embed_tokens",)
    assert (fill.reload_bytes, fill.hosted) == (0, {table.position})
    # Without the lookup some of the layers would be copied for every token.
    assert fill_one(units, int(budget)).reload_bytes > 0


@pytest.mark.parametrize("budget", [15.3e9, 15.9e9])
def test_the_plan_finds_that_lookup_and_explains_it(llama, budget):
    """On a GPU that has so much for weights beside cache, activations and context."""
    ample = planned(llama, [gpu(64 * GIB), host(64 * GIB)])
    beside = ample.devices[0].total_bytes - llama.weight_bytes
    plan = planned(llama, [gpu(beside + int(budget)), host(64 * GIB)])
    assert plan.verdict.fits
    assert plan.placement.host_lookup == ("model.embed_tokens",)
    assert plan.placement.streamed_bytes_per_token == 0
    assert plan.placement.device_map["model.embed_tokens"] == "cpu"
    assert "the host looks each token's row up" in plan.placement.policy
    assert "reload_buffer" not in plan.devices[0].items
    assert "looked up by the host" in plan.verdict.reason
    # A module that the user pinned stays, and then some of the layers are streamed.
    pins = ("model.embed_tokens=cuda:0",)
    other = planned(llama, [gpu(beside + int(budget)), host(64 * GIB)], pin=pins)
    assert other.placement.streamed_bytes_per_token > 0


def test_an_embedding_that_the_output_shares_is_no_lookup():
    """Gemma's table is multiplied for every token."""
    gemma = find_model("gemma-2-2b") or find_model("gemma-2b")
    assert gemma is not None
    assert not any(unit.lookup for unit in cut(gemma))


def test_dense_weights_come_before_experts_where_only_chosen_ones_are_read(mixtral):
    """By cpu-compute; streaming reads all experts, so they are worth their bytes."""
    units = cut(mixtral)
    fill = filled(PROFILES["cpu-compute"], units, 8 * GIB, {})
    dense = [u for u in units if u.active_share == 1 and u.weight_bytes and not u.lookup]
    assert sum(u.weight_bytes for u in dense) < 8 * GIB
    assert all(u.position in fill.resident for u in dense)
    assert fill.reload_bytes == 0


def test_active_bytes_of_a_mixture_are_those_of_its_active_parameters(mixtral):
    """2 of 8 experts; all of the rest."""
    units = cut(mixtral)
    active = sum(unit.active_bytes for unit in units)
    assert active == pytest.approx(2 * mixtral.active_parameters, rel=1e-6)


def test_streaming_experts_is_warned_of_with_the_better_engine(mixtral):
    """And not where nothing is away."""
    plan = planned(mixtral, [gpu(24 * GIB), host(200 * GIB)])
    (warning,) = plan.placement.warnings
    assert "llama.cpp or ktransformers" in warning
    assert "times as fast" in warning
    assert not planned(mixtral, [gpu(200 * GIB), host(200 * GIB)]).placement.warnings


def test_bitsandbytes_keeps_16_bits_off_the_gpu(llama):
    """Transformers 5.23: a module on the host or disk stays unquantized (16.0 bits measured)."""
    packed = quantize(llama, None, parse_scheme("nf4"))
    linear = next(u for u in cut(packed) if u.names[0].endswith("layers.0.mlp.up_proj"))
    assert linear.away_bytes == linear.reload_bytes == 2 * 4096 * 14336
    assert linear.weight_bytes < linear.away_bytes / 3
    gptq = quantize(llama, None, parse_scheme("gptq-4bit-g128"))
    other = next(u for u in cut(gptq) if u.names[0].endswith("layers.0.mlp.up_proj"))
    assert other.away_bytes == other.weight_bytes


def test_the_disk_is_charged_for_experts_and_not_for_dense_weights(llama, mixtral):
    """Dense weights are read from the checkpoint; fused experts are written anew."""
    disk = Device(name="disk", kind="disk", capacity_bytes=400 * GIB)
    plan = planned(llama, [gpu(8 * GIB), disk])
    assert plan.devices[1].parts.get("weights", 0) == 0
    assert plan.devices[1].reused_bytes == plan.placement.offloaded_bytes
    moe = planned(mixtral, [gpu(24 * GIB), disk])
    written, reused = moe.devices[1].parts["weights"], moe.devices[1].reused_bytes
    assert written + reused == moe.placement.offloaded_bytes
    where = moe.placement.device_map
    experts = [f"model.layers.{i}.mlp.experts" for i in range(32)]
    moved = [name for name in experts if place_of(name, where) == "disk"]
    assert written == len(moved) * 8 * 3 * 4096 * 14336 * 2
    none = planned(mixtral, [gpu(24 * GIB), replace(disk, capacity_bytes=GIB)])
    assert not none.verdict.fits


def test_vllm_moves_parameters_of_the_layers_in_order():
    """The settings are the number that its option takes; nothing outside the layers moves."""
    units = layered(6, [(10, 1.0), (30, 1.0)])
    fill = filled(PROFILES["uva"], units, 150 * MIB, {})
    away = [u.position for u in units if u.position not in fill.resident]
    assert away == list(range(len(away)))
    assert fill.settings == {"cpu_offload_bytes": sum(units[i].weight_bytes for i in away)}
    assert sum(u.weight_bytes for u in units if u.position in fill.resident) <= 150 * MIB


def test_vllm_moves_experts_alone_where_that_reads_less():
    """A token reads few of them over the bus."""
    units = layered(4, [(10, 1.0), (80, 0.25)])
    fill = filled(PROFILES["uva"], units, 220 * MIB, {})
    assert fill.settings["cpu_offload_experts"] == 1
    assert all(u.active_share < 1 for u in units if u.position not in fill.resident)


def test_prefetching_takes_the_last_layers_of_each_group_and_a_layer_of_buffer():
    """12 layers of 40 MiB in 460: one layer in three makes room for the buffer."""
    units = layered(12, [(40, 1.0)])
    fill = filled(PROFILES["prefetch"], units, 460 * MIB, {})
    group = fill.settings["offload_group_size"]
    away = {u.layer for u in units if u.position not in fill.resident}
    assert away == {layer for layer in range(12) if layer % group == group - 1}
    assert fill.reload_bytes == 40 * MIB
    assert 40 * MIB * (12 - len(away) + 1) <= 460 * MIB < 40 * MIB * (12 - len(away) + 3)


def test_a_way_to_offload_that_a_runtime_lacks_is_refused(llama):
    """With those that it has."""
    work = complete({"offload": "uva"}, llama)
    with pytest.raises(UsageError, match="transformers does not offload by uva") as error:
        profile_of(work)
    assert "--offload stream" in error.value.hint
    assert profile_of(complete({"runtime": "vllm", "offload": "prefetch"}, llama)).overlaps


def test_an_engine_without_offload_keeps_everything_on_its_devices(llama):
    """exllama: what does not fit is not moved elsewhere in silence."""
    plan = planned(llama, [gpu(8 * GIB), host(64 * GIB)], runtime="exllama")
    assert not plan.verdict.fits
    assert plan.placement.offloaded_bytes == 0


def test_decode_costs_add_up_by_hand():
    """100 MiB at home, 50 MiB streamed over a stated link, an embedding that costs nothing."""
    home, away = layered(2, [(100, 1.0)]), layered(1, [(50, 1.0)])
    table = replace(home[1], position=2, lookup=True, names=("embed",))
    units = [home[0], replace(away[0], position=1), table]
    where = {0: "cuda:0", 1: "cpu", 2: "cuda:0"}
    rates = speeds([gpu(GIB, memory_bandwidth=10**12), host(GIB, bandwidth=10**10)])
    found = decode_speed(units, where, PROFILES["stream"], rates)
    expected = 50 * MIB / 1e10 + 20e-6 + 150 * MIB / 0.8e12
    assert 1 / found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    # Computed by the host, the same piece is read from its memory.
    other = decode_speed(units, where, PROFILES["cpu-compute"], rates)
    assert 1 / other.value == pytest.approx(50 * MIB / 60e9 + 100 * MIB / 0.8e12)
    # Copies that run ahead cost only what is longer.
    ahead = decode_speed(units, where, PROFILES["prefetch"], rates)
    assert 1 / ahead.value == pytest.approx(50 * MIB / 1e10 + 20e-6)
    assert "cpu 10 GB/s (stated) link" in rates.source
    assert "cuda:0 800 GB/s (table) own" in rates.source


def test_a_prompt_reads_what_is_away_once_for_all_of_its_tokens():
    """Twice the tokens in little more time."""
    units = layered(1, [(500, 1.0)])
    rates = speeds([gpu(GIB), host(GIB, bandwidth=10**10)])
    one, two = (
        prefill_speed(
            units, {0: "cpu"}, PROFILES["stream"], rates, tokens=tokens, parameters=250 * MIB
        ).value
        for tokens in (512, 1024)
    )
    assert 1.8 < two / one < 2
    nothing = prefill_speed(units, {0: "cuda:0"}, PROFILES["stream"], rates, tokens=8, parameters=1)
    assert nothing.value is None
