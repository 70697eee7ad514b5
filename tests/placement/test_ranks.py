"""Training on several GPUs: each rank's ledger, held against the plan of one device."""

from __future__ import annotations

import dataclasses

import pytest
from checkpoints import TINY, write_llama

from memplan.errors import UsageError
from memplan.footprint.defaults import complete
from memplan.models.load import load_model
from memplan.parallel.moments import Moments
from memplan.placement.plan import make_plan
from memplan.placement.ranks import MOST_RANKS
from memplan.types import Device
from memplan.units import GIB

CONFIG = {**TINY, "hidden_size": 256, "vocab_size": 4096, "num_hidden_layers": 4}


def planned(tmp_path, count, *, capacity=80 * GIB, model=CONFIG, disk=False, **options):
    folder = write_llama(tmp_path, model)
    options = {"task": "train", "precision": "bf16", "estimator": "formula", **options}
    spec = load_model(str(folder), dtype="bfloat16", options=options)
    work = dataclasses.replace(complete(options, spec), gpus=count)
    gpus = [Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=capacity) for i in range(count)]
    host = Device(name="cpu", kind="cpu", capacity_bytes=512 * GIB)
    slow = [host, Device(name="disk", kind="disk", capacity_bytes=4096 * GIB)] if disk else [host]
    return make_plan(spec, work, [*gpus, *slow])


def test_ddp_holds_on_each_rank_what_one_device_holds_and_its_buckets(tmp_path):
    """Only the buckets are more."""
    one = planned(tmp_path, 1)
    both = planned(tmp_path, 2, strategy="ddp")
    for part in ("weights", "gradients", "optimizer", "activations"):
        assert both.footprint.part(part) == one.footprint.part(part)
    more = both.footprint.part("buffers") - one.footprint.part("buffers")
    assert more == one.footprint.part("gradients")
    assert both.devices[0].parts == both.devices[1].parts
    assert both.placement.policy == "ddp over 2 GPUs"


@pytest.mark.parametrize(("strategy", "more"), [("zero3", 1.5), ("fsdp2", 1.0)])
def test_sharding_divides_weights_gradients_and_states(tmp_path, strategy, more):
    """By the number of ranks, up to what is left over; DeepSpeed keeps master weights, too."""
    one = planned(tmp_path, 1)
    plan = planned(tmp_path, 4, strategy=strategy)
    for part, scale in (("weights", 1.0), ("optimizer", more)):
        whole = scale * one.footprint.part(part)
        assert plan.footprint.part(part) == pytest.approx(whole / 4, rel=0.02)


def test_tensor_and_pipeline_parallelism_take_their_share_of_the_activations(tmp_path):
    """A degree of two leaves more than half, as norms' inputs stay whole."""
    plain = planned(tmp_path, 1, seq=512).footprint.part("activations")
    by_tensor = planned(tmp_path, 2, strategy="tp", seq=512).footprint.part("activations")
    assert plain / 2 < by_tensor < plain


def test_offloaded_states_and_each_rank_of_a_machine_are_charged_to_the_host(tmp_path):
    """The host runs one process for each of its GPUs."""
    plan = planned(tmp_path, 4, strategy="fsdp2")
    host = next(ledger for ledger in plan.devices if ledger.kind == "cpu")
    assert host.parts["overhead"] == 4 * GIB
    two = planned(tmp_path, 4, strategy="fsdp2", nodes=2)
    assert next(x for x in two.devices if x.kind == "cpu").parts["overhead"] == 2 * GIB


@pytest.mark.parametrize("count", [1, 2])
def test_zero3_moves_states_and_weights_to_host_memory(tmp_path, count):
    """On one GPU, too; what left the GPUs is in the host's ledger, with float32 copies."""
    usual = planned(tmp_path, 1)
    moved = {"strategy": "zero3", "offload_optimizer": "cpu", "offload_params": "cpu"}
    plan = planned(tmp_path, count, precision="bf16-mixed", **moved)
    host = next(ledger for ledger in plan.devices if ledger.kind == "cpu")
    elements = usual.footprint.part("weights") // 2
    assert host.parts["weights"] >= 2 * elements
    assert host.parts["optimizer"] == pytest.approx(12 * elements, rel=0.01)
    assert "optimizer" not in plan.devices[0].parts
    assert plan.devices[0].parts.get("weights", 0) == 0


def test_states_can_lie_on_disk_and_weights_stay(tmp_path):
    """ZeRO-Infinity keeps pinned buffers in host memory beside them."""
    plan = planned(tmp_path, 2, disk=True, strategy="zero3", offload_optimizer="disk")
    books = {ledger.kind: ledger for ledger in plan.devices}
    assert books["disk"].total_bytes > 0
    assert books["gpu"].parts["weights"] > 0
    assert books["cpu"].parts["overhead"] == 2 * GIB


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"strategy": "ddp", "offload_optimizer": "cpu"}, "zero3"),
        ({"strategy": "zero2", "offload_params": "cpu"}, "zero3"),
        ({"strategy": "zero1", "offload_optimizer": "disk"}, "zero3"),
        ({"strategy": "fsdp2", "offload_params": "disk"}, "zero3"),
        ({"strategy": "zero3", "offload_params": "disk"}, "--disk"),
        ({"strategy": "fsdp2", "optimizer": "adamw-in-backward"}, "--optimizer adamw"),
        ({"strategy": "zero2", "optimizer": "galore"}, "ddp"),
    ],
)
def test_what_no_framework_offloads_is_refused(tmp_path, options, hint):
    """With what can be done instead."""
    with pytest.raises(UsageError) as caught:
        planned(tmp_path, 2, **options)
    assert hint in caught.value.hint


def test_adapters_are_sharded_over_all_ranks(tmp_path):
    """The states of every rank, not of the first alone."""
    plan = planned(tmp_path, 2, strategy="fsdp2", method="lora", lora_rank=8)
    gpus = [ledger for ledger in plan.devices if ledger.kind == "gpu"]
    assert gpus[0].parts["optimizer"] == pytest.approx(gpus[1].parts["optimizer"], rel=0.01)


def test_a_job_of_thousands_of_ranks_is_planned_by_its_fullest(tmp_path):
    """All ledgers are alike, and it takes no longer."""
    plan = planned(tmp_path, MOST_RANKS * 4, strategy="fsdp2")
    assert len({ledger.parts for ledger in plan.devices if ledger.kind == "gpu"}) == 1


def test_degrees_that_do_not_multiply_to_the_gpus_are_refused(tmp_path):
    """With what they multiply to."""
    with pytest.raises(UsageError, match="not 4 GPUs"):
        planned(tmp_path, 4, strategy="tp", tp=3)


def test_what_the_estimator_saw_is_what_the_ranks_get(tmp_path):
    """An estimator with moments of its own is asked instead of the formulas."""
    from memplan.footprint.estimate import estimate

    def seen(*_, **__):
        return Moments(
            saved_bytes=7 * GIB, step_bytes=0, basis="trace", source="seen", low=1.0, high=1.0
        )

    def by(*args, **kwargs):
        return estimate(*args, **kwargs)

    by.moments = seen
    folder = write_llama(tmp_path, CONFIG)
    options = {"task": "train", "precision": "bf16", "strategy": "ddp"}
    spec = load_model(str(folder), dtype="bfloat16", options=options)
    work = dataclasses.replace(complete(options, spec), gpus=2)
    gpus = [Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=80 * GIB) for i in range(2)]
    plan = make_plan(spec, work, gpus, estimator=by)
    gradients = plan.footprint.part("gradients")
    assert plan.footprint.part("activations") == 7 * GIB - gradients
    assert next(x for x in plan.footprint.lines if x.part == "activations").basis == "trace"


def test_what_the_allocator_wastes_shrinks_with_what_a_rank_holds(tmp_path):
    """It was traced on one device that does everything."""
    from memplan.footprint.estimate import estimate
    from memplan.types import Footprint, Line

    def by(*args, **kwargs):
        wasted = Line(
            part="overhead",
            bytes=GIB,
            low_bytes=0,
            high_bytes=2 * GIB,
            basis="trace",
            source="reserved",
        )
        return Footprint(lines=(*estimate(*args, **kwargs).lines, wasted))

    folder = write_llama(tmp_path, CONFIG)
    options = {"task": "train", "precision": "bf16", "strategy": "fsdp2", "estimator": "formula"}
    spec = load_model(str(folder), dtype="bfloat16", options=options)
    work = dataclasses.replace(complete(options, spec), gpus=4)
    gpus = [Device(name=f"cuda:{i}", kind="gpu", capacity_bytes=80 * GIB) for i in range(4)]
    lines = make_plan(spec, work, gpus, estimator=by).footprint.lines
    wasted = next(line for line in lines if line.source == "reserved")
    assert 0 < wasted.bytes < GIB
