"""memplan.placement.plan: verdicts, ledgers, streaming, changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import LLAMA_7B, TINY, write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.placement.mapping import uncovered
from memplan.placement.plan import make_plan
from memplan.types import Device, Tensor
from memplan.units import GIB, MIB, parse_bytes


def gpu(size, index=0):
    return Device(name=f"cuda:{index}", kind="gpu", capacity_bytes=size)


def host(size):
    return Device(name="cpu", kind="cpu", capacity_bytes=size)


def disk(size):
    return Device(name="disk", kind="disk", capacity_bytes=size)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Llama-2-7B by headers that take no space."""
    return resolve(str(write_llama(tmp_path_factory.mktemp("llama"), LLAMA_7B, "F16")))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of 100,000 parameters."""
    return resolve(str(write_llama(tmp_path_factory.mktemp("tiny"), TINY)))


def planned(spec, devices, **options):
    return make_plan(spec, complete(options, spec), devices)


def test_a_model_that_fits_lives_on_the_gpu(llama):
    """7B in float16 on 24 GiB."""
    plan = planned(llama, [gpu(24 * GIB), host(64 * GIB)])
    assert plan.verdict.fits
    assert set(plan.placement.device_map.values()) == {"cuda:0"}
    assert plan.devices[0].parts["weights"] == llama.weight_bytes
    assert plan.devices[0].total_bytes == plan.footprint.total_bytes
    assert plan.placement.decode_tokens_per_s.value is None


def test_offload_charges_each_byte_where_it_lives(llama):
    """Cache, activations and the reload buffer on the GPU, the rest of the weights elsewhere."""
    plan = planned(llama, [gpu(8 * GIB), host(6 * GIB), disk(100 * GIB)], context=2048)
    on_gpu, on_host, on_disk = plan.devices
    assert plan.verdict.fits
    assert on_gpu.parts["kv_cache"] == 2048 * 32 * 2 * 4096 * 2
    weights = [ledger.parts.get("weights", 0) + ledger.reused_bytes for ledger in plan.devices]
    assert all(weights)
    assert sum(weights) == llama.weight_bytes
    assert plan.placement.offloaded_bytes == weights[1] + weights[2]
    # The largest streamed module is copied to the GPU: 11008 x 4096 in float16.
    assert on_gpu.parts["activations"] - plan.footprint.part("activations") == 11008 * 4096 * 2
    assert on_gpu.high_bytes <= 8 * GIB
    assert on_host.high_bytes <= 6 * GIB
    # What is on disk is read from the checkpoint itself, and takes no new room.
    assert not on_disk.parts
    assert on_disk.reused_bytes == weights[2]
    speed = plan.placement.decode_tokens_per_s
    assert speed.low < speed.value < speed.high
    copies = weights[1] / 25e9 + weights[2] / 3e9
    reads = (llama.weight_bytes + on_gpu.parts["kv_cache"]) / 900e9
    assert speed.value == pytest.approx(1 / (copies + reads), rel=0.02)


def test_what_finds_no_place_does_not_fit_and_says_by_how_much(llama):
    """4 GiB of GPU and of host memory hold no 12.55 GiB."""
    plan = planned(llama, [gpu(4 * GIB), host(4 * GIB)])
    assert not plan.verdict.fits
    assert plan.verdict.reason.startswith("cpu lacks")
    assert plan.devices[1].free_bytes < 0


def test_a_plan_that_does_not_fit_names_changes_that_do(llama):
    """Each change alone, as it is named, makes the plan fit."""
    devices = [gpu(18 * GIB)]
    plan = planned(llama, devices, context=4096, batch=8)
    assert not plan.verdict.fits
    options = {"context": 4096, "batch": 8}
    names = {change.option for change in plan.verdict.changes}
    assert {"context", "batch"} <= names
    assert "device" in names
    for change in plan.verdict.changes:
        value = int(change.value) if change.value.isdigit() else change.value
        changed = {**options, change.option.replace("-", "_"): value}
        on = devices
        if change.option == "device":
            on = [gpu(parse_bytes(changed.pop("device")))]
        again = planned(llama, on, **changed)
        assert again.verdict.fits
        assert again.footprint.total_bytes == change.total_bytes


def test_a_coarser_cache_is_one_of_the_changes(llama):
    """The first type that suffices, with what the engine then unpacks."""
    plan = planned(llama, [gpu(17 * GIB)], context=4096, batch=2)
    assert not plan.verdict.fits
    (change,) = [c for c in plan.verdict.changes if c.option == "kv-dtype"]
    assert change.value == "int8"
    assert planned(llama, [gpu(17 * GIB)], batch=2, kv_dtype="int8").verdict.fits


def test_training_names_checkpointing_before_smaller_batches(tiny):
    """And never offloads weights that are being updated."""
    plan = planned(tiny, [gpu(GIB), host(64 * GIB)], task="train", seq=256, batch=512)
    assert not plan.verdict.fits
    assert plan.placement.offloaded_bytes == 0
    assert plan.verdict.changes[0].option in {"checkpointing", "seq"}


def test_layers_are_spread_over_several_gpus_in_order(llama):
    """Two GPUs of 10 GiB hold what one of 24 does; no layer is cut."""
    plan = planned(llama, [gpu(10 * GIB), gpu(10 * GIB, 1), host(64 * GIB)])
    assert plan.verdict.fits
    where = [plan.placement.device_map[f"model.layers.{i}"] for i in range(32)]
    assert where == sorted(where)
    assert set(where) == {"cuda:0", "cuda:1"}
    first, second, _ = plan.devices
    assert first.parts["weights"] + second.parts["weights"] == llama.weight_bytes
    assert first.parts["kv_cache"] + second.parts["kv_cache"] == 2 * GIB
    assert abs(first.total_bytes - second.total_bytes) < GIB
    assert plan.footprint.total_bytes == max(first.total_bytes, second.total_bytes)


def test_several_small_gpus_stream_the_last_layers(llama):
    """What two GPUs cannot hold goes to the host, its cache stays on the first GPU."""
    plan = planned(llama, [gpu(6 * GIB), gpu(6 * GIB, 1), host(64 * GIB)], context=512)
    assert plan.verdict.fits
    where = plan.placement.device_map
    # The second one holds whole layers; what is streamed runs on the first, which has the buffer.
    assert where["model.layers.31"] == "cuda:1"
    assert "model.layers.0" not in where
    assert where["model.layers.0.mlp.up_proj"] in {"cuda:0", "cpu"}
    assert plan.devices[0].items["reload_buffer"] == 11008 * 4096 * 2
    assert "reload_buffer" not in plan.devices[1].items
    assert sum(x.parts.get("weights", 0) for x in plan.devices) == llama.weight_bytes
    assert sum(x.parts.get("kv_cache", 0) for x in plan.devices) == 512 * 32 * 2 * 4096 * 2


def test_training_asks_for_as_many_devices_as_ranks(tiny):
    """The workload says how many GPUs there are, and nothing is guessed."""
    with pytest.raises(UsageError, match="1 GPUs are to train and 2 are named"):
        planned(tiny, [gpu(GIB), gpu(GIB, 1)], task="train")


def test_a_disk_alone_computes_nothing(tiny):
    """Some device must compute."""
    with pytest.raises(UsageError, match="computes"):
        planned(tiny, [disk(GIB)])


def test_a_measured_interpreter_replaces_the_assumed_one(tiny):
    """Only where the host computes."""
    work = complete({}, tiny)
    plan = make_plan(tiny, work, [host(4 * GIB)], baseline=300 * MIB)
    (line,) = [x for x in plan.footprint.lines if x.part == "overhead"]
    assert (line.bytes, line.basis) == (300 * MIB, "measured")
    on_gpu = make_plan(tiny, work, [gpu(4 * GIB)], baseline=300 * MIB)
    assert on_gpu.footprint.part("overhead") != 300 * MIB


@given(
    st.integers(1, 40 * GIB), st.integers(0, 40 * GIB), st.integers(0, 40 * GIB), st.integers(1, 8)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_plan_adds_up(llama, on_gpu, on_host, on_disk, batch):
    """Whatever the sizes: all weights are somewhere, the map is complete, fits means fits."""
    devices = [gpu(on_gpu)]
    devices += [host(on_host)] if on_host else []
    devices += [disk(on_disk)] if on_disk else []
    plan = planned(llama, devices, context=256, batch=batch)
    held = sum(x.parts.get("weights", 0) + x.reused_bytes for x in plan.devices)
    assert held == llama.weight_bytes
    assert not uncovered(plan.placement.device_map, llama)
    assert plan.verdict.fits == all(ledger.free_bytes >= 0 for ledger in plan.devices)
    assert set(plan.placement.device_map.values()) <= {device.name for device in devices}
    assert plan.footprint.low_bytes <= plan.footprint.total_bytes <= plan.footprint.high_bytes


def test_each_device_proves_its_sum(llama):
    """Item by item in bytes, and the sign that says whether it holds."""
    plan = planned(llama, [gpu(8 * GIB), host(64 * GIB)], context=512)
    for ledger in plan.devices:
        terms, _, capacity = ledger.proof.partition(" <= ")
        items, _, total = terms.partition(" = ")
        assert int(capacity) == ledger.capacity_bytes
        assert sum(int(term.split()[1]) for term in items.split(" + ")) == int(total)
        assert int(total) == ledger.total_bytes
    assert "reload_buffer 90177536" in plan.devices[0].proof
    small = planned(llama, [gpu(2 * GIB)])
    assert " > 2147483648" in small.devices[0].proof


def test_a_plan_that_does_not_fit_names_what_binds(llama):
    """The device, what it offers, and its largest items."""
    plan = planned(llama, [gpu(4 * GIB), host(4 * GIB)])
    assert plan.verdict.binding.startswith("cpu offers 4.00 GiB; weights ")
    assert not planned(llama, [gpu(24 * GIB)]).verdict.binding
    (change,) = [c for c in plan.verdict.changes if c.option == "host-memory"]
    again = planned(llama, [gpu(4 * GIB), host(parse_bytes(change.value))])
    assert again.verdict.fits
    less = planned(llama, [gpu(4 * GIB), host(parse_bytes(change.value) - GIB // 10)])
    assert not less.verdict.fits


def test_a_plan_says_how_much_more_memory_removes_all_streaming(llama):
    """And that much does, to the hundredth of a GiB, on one GPU and on two."""
    for devices in ([gpu(12 * GIB)], [gpu(5 * GIB), gpu(7 * GIB, 1)]):
        plan = planned(llama, [*devices, host(64 * GIB)])
        (text,) = plan.verdict.sensitivity
        assert text.startswith("+")
        assert "on cuda:0 removes all streaming" in text
        more = parse_bytes(text[1:].partition(" on")[0])
        for extra, streams in ((more + GIB // 100, False), (more - GIB // 10, True)):
            first = gpu(devices[0].capacity_bytes + extra)
            again = planned(llama, [first, *devices[1:], host(64 * GIB)])
            assert (
                bool(again.placement.streamed_bytes_per_token) == streams
                or again.placement.host_lookup
            )


def test_other_quantizations_are_tried_only_when_nothing_fits(llama):
    """They are made on demand: reading a model twice is not free."""
    made = []

    def half():
        made.append(1)
        return replace(llama, tensors=tuple(replace(t, bytes=t.bytes // 2) for t in llama.tensors))

    work = complete({"context": 512}, llama)
    assert make_plan(llama, work, [gpu(24 * GIB)], quants={"int8": half}).verdict.fits
    assert not made
    plan = make_plan(llama, work, [gpu(9 * GIB)], quants={"int8": half})
    assert ("quant", "int8") in {(c.option, c.value) for c in plan.verdict.changes}


def test_pins_are_kept_or_refused(llama):
    """A module, all below one, a GPU by its number; and what cannot be kept is an error."""
    devices = [gpu(24 * GIB), host(64 * GIB)]
    pins = ("model.layers.3=cpu", "lm_head=cpu", "model.layers.3.mlp=0")
    where = planned(llama, devices, pin=pins).placement.device_map
    assert where["lm_head"] == "cpu"
    assert where["model.layers.3.self_attn.q_proj"] == "cpu"
    assert where["model.layers.3.mlp.up_proj"] == "cuda:0"
    assert where["model.layers.4"] == "cuda:0"
    two = [gpu(24 * GIB), gpu(24 * GIB, 1), host(64 * GIB)]
    where = planned(llama, two, pin=("model.layers.31=cuda:0",)).placement.device_map
    assert where["model.layers.31"] == "cuda:0"
    for pin, text in (
        ("lm_head", "does not name a module and a device"),
        ("lm_head=cuda:7", "does not name a module and a device"),
        ("lm_heat=cpu", "the model has no module lm_heat"),
        ("lm_head.weight=cpu", "lm_head.weight moves with all of lm_head"),
    ):
        with pytest.raises(UsageError, match=text):
            planned(llama, devices, pin=(pin,))


def test_the_buffers_of_split_modules_are_where_they_run(tmp_path):
    """accelerate#4014: tables of 64 MiB in modules that are streamed stay on the GPU."""
    spec = resolve(str(write_llama(tmp_path, TINY)))
    tables = tuple(
        Tensor(
            name=f"model.layers.{i}.mlp.up_proj.table",
            shape=(64 * MIB,),
            dtype="int8",
            bytes=64 * MIB,
            kind="buffer",
        )
        for i in range(2)
    )
    spec = replace(spec, tensors=(*spec.tensors, *tables), exact_modules=True)
    plan = planned(spec, [gpu(2 * GIB), host(GIB)], pin=("model.layers.1=cpu",))
    assert plan.devices[0].parts["buffers"] == 128 * MIB
    two = planned(spec, [gpu(2 * GIB), gpu(2 * GIB, 1)], pin=("model.layers.1=1",))
    assert [x.parts["buffers"] for x in two.devices] == [64 * MIB, 64 * MIB]


def test_a_gpu_is_never_left_unused_in_silence(llama):
    """Where no buffer fits, the plan says so; where one does, something is resident."""
    for size in range(1, 9):
        plan = planned(llama, [gpu(size * GIB), host(64 * GIB)], context=256)
        assert "cuda:0" in set(plan.placement.device_map.values())
        assert plan.verdict.fits == (plan.devices[0].free_bytes >= 0)
