"""memplan.placement.llamacpp: layers, caches and experts as llama.cpp places them."""

from __future__ import annotations

import itertools

import gguf_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.placement.llamacpp_parts import Block, Group, Parts, parts_of
from memplan.placement.llamacpp_solve import solve
from memplan.placement.plan import make_plan
from memplan.placement.units import cut
from memplan.types import Device
from memplan.units import GIB, MIB


def hardware(*gpus, host=2**42):
    found = [
        Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=size) for i, size in enumerate(gpus)
    ]
    return [*found, Device(name="cpu", kind="cpu", capacity_bytes=host)] if host else found


def planned(path, devices, **options):
    spec = load_model(str(path), dtype=None, options=options)
    return spec, make_plan(spec, complete(options, spec), devices)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Llama-3.1-8B in q4_0, header only."""
    path = tmp_path_factory.mktemp("llama") / "llama.gguf"
    return gguf_files.write_gguf(path, *gguf_files.llama())


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    """Qwen3-30B-A3B in q4_0, header only."""
    path = tmp_path_factory.mktemp("moe") / "moe.gguf"
    return gguf_files.write_gguf(path, *gguf_files.qwen3moe())


def test_every_byte_of_weights_and_cache_is_on_one_device(llama):
    """The device's ledgers add up to the file and to the cache, whatever the budget."""
    spec, whole = planned(llama, hardware(40 * GIB), context=8192)
    for size in (1, 3, 4, 5, 6, 8):
        _, plan = planned(llama, hardware(size * GIB), context=8192)
        parts = [ledger.parts for ledger in plan.devices]
        assert sum(p.get("weights", 0) for p in parts) == spec.weight_bytes
        caches = sum(p.get("kv_cache", 0) for p in parts)
        assert caches == whole.devices[0].parts["kv_cache"] == 8192 * 131072


def test_the_embedding_stays_with_the_host_even_where_all_fits(llama):
    """A lookup reads one row; llama.cpp never puts it on a GPU."""
    spec, plan = planned(llama, hardware(40 * GIB), context=8192)
    embedding = next(t.bytes for t in spec.tensors if t.name == "token_embd.weight")
    assert plan.placement.device_map["token_embd"] == "cpu"
    assert plan.devices[0].parts["weights"] == spec.weight_bytes - embedding
    assert plan.placement.offloaded_bytes == 0
    assert plan.placement.streamed_bytes_per_token == 0


def test_a_tied_output_is_a_second_copy(tmp_path):
    """Gemma's embedding is looked up by the host and multiplied on the GPU: two copies."""
    path = gguf_files.write_gguf(tmp_path / "g.gguf", *gguf_files.gemma3(layers=6))
    spec, plan = planned(path, hardware(40 * GIB), context=2048)
    embedding = next(t.bytes for t in spec.tensors if t.name == "token_embd.weight")
    weights = sum(ledger.parts.get("weights", 0) for ledger in plan.devices)
    assert weights == spec.weight_bytes + embedding


def test_the_last_layers_go_to_the_gpu_with_their_cache(llama):
    """Layers 0 to n are the host's, the rest and the output the GPU's."""
    _, plan = planned(llama, hardware(4 * GIB), context=8192)
    places = plan.placement.device_map
    whole = [key for key in places if key.startswith("blk.") and key.count(".") == 1]
    first = min(int(key.split(".")[1]) for key in whole if places[key] == "cuda:0")
    assert places["output"] == places["output_norm"] == "cuda:0"
    for key in whole:
        assert places[key] == ("cuda:0" if int(key.split(".")[1]) >= first else "cpu")
    shared = places.get(f"blk.{first - 1}.attn_q") == "cuda:0"
    cached = plan.devices[0].parts["kv_cache"] // (8192 * 4096)
    assert cached == 32 - first + shared


def test_of_a_mixture_what_every_token_reads_comes_first(moe):
    """All attention and routers are on the GPU before one expert is."""
    _, plan = planned(moe, hardware(4 * GIB), context=8192)
    places = plan.placement.device_map
    away = [key for key, device in places.items() if device == "cpu" and key != "token_embd"]
    assert away
    assert all("_exps" in key for key in away)
    assert "experts" in plan.placement.policy


def test_one_memory_for_both_holds_the_embedding_too(llama):
    """Without host memory of its own, the device has everything, each byte once."""
    spec, plan = planned(llama, hardware(16 * GIB, host=0), context=8192)
    assert plan.devices[0].parts["weights"] == spec.weight_bytes
    assert plan.verdict.fits


def test_a_mixture_on_a_small_gpu_goes_without_the_copy_buffer(tmp_path):
    """DeepSeek's experts are 2 GiB a matrix: their copies would cost layers their place."""
    path = gguf_files.write_gguf(tmp_path / "d.gguf", *gguf_files.deepseek3())
    _, small = planned(path, hardware(8 * GIB), context=4096)
    _, large = planned(path, hardware(80 * GIB), context=4096)
    assert small.placement.settings == {"op_offload": 0}
    assert large.placement.settings == {}


def group(size, active=None):
    return Group(
        modules=(), bytes=size, active_bytes=size if active is None else active, largest_bytes=size
    )


def model(sizes, *, routed):
    """Return a model of (kept, moved matrix, cache) layers and an output of 5."""
    blocks = [
        Block(
            kept=group(kept),
            moved=tuple(group(moved, moved // 4 if routed else moved) for _ in range(2)),
            kv_bytes=cache,
            layer=None,
        )
        for kept, moved, cache in sizes
    ]
    output = Block(kept=group(5), moved=(), layer=None)
    return Parts(lookup=group(3), blocks=(*blocks, output), routed=routed, copied_output=False)


def flat(size):
    def charge(gpu, start, stop, *, hosted):
        del gpu, hosted
        return size if stop > start else 0

    return charge


SIZES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.lists(st.integers(0, 90), min_size=1, max_size=3), st.integers(0, 3))
def test_rows_of_a_dense_model_are_the_best_of_all(sizes, budgets, buffer):
    """No other choice of rows has more bytes of whole layers on the GPUs."""
    parts = model(sizes, routed=False)
    found = solve(parts, budgets, flat(buffer))
    count = len(parts.blocks)

    def held(starts):
        stops = (*starts[1:], count)
        total = 0
        for budget, start, stop in zip(budgets, starts, stops, strict=True):
            row = parts.blocks[start:stop]
            need = sum(b.bytes + b.cache_bytes for b in row) + (buffer if row else 0)
            if need > budget:
                return -1
            total += sum(b.bytes for b in row)
        return total

    every = itertools.combinations_with_replacement(range(count + 1), len(budgets))
    best = max((held(starts) for starts in every), default=0)
    partial = {block for block, _ in found.left}
    mine = sum(
        block.bytes
        for i, block in enumerate(parts.blocks)
        if found.gpu_of(i) is not None and i not in partial
    )
    assert mine == max(best, 0)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.lists(st.integers(0, 90), min_size=1, max_size=3), st.booleans())
def test_no_layout_is_over_a_budget(sizes, budgets, routed):
    """Weights, caches and buffers of each GPU are within what it has."""
    parts = model(sizes, routed=routed)
    found = solve(parts, budgets, flat(2))
    for gpu, budget in enumerate(budgets):
        row = range(found.starts[gpu], found.stops[gpu])
        need = sum(parts.blocks[i].bytes + parts.blocks[i].cache_bytes for i in row)
        need -= sum(parts.blocks[i].moved[g].bytes for i, g in found.left if i in row)
        assert not row or need + 2 <= budget


def test_parts_know_experts_and_their_share(moe):
    """Eight of 128 experts: a sixteenth of their bytes is read for a token."""
    spec = load_model(str(moe), dtype=None, options={})
    parts = parts_of(spec, complete({"context": 512}, spec), cut(spec))
    experts = parts.blocks[0].moved
    assert parts.routed
    assert len(experts) == 3
    assert all(g.active_bytes == pytest.approx(g.bytes / 16, rel=0.001) for g in experts)
    assert parts.lookup.bytes > MIB
    assert parts.lookup.active_bytes == 0
