"""What an engine did is held against its plan: reports, logs and peaks."""

from __future__ import annotations

from dataclasses import replace

from factories import make_plan

from memplan.emit.launch import ENGINES, ignored, ignored_by_log, ignored_by_peaks
from memplan.emit.targets import TARGETS
from memplan.types import FrozenMap
from memplan.units import MIB


def on_gpu(**parts):
    """Return a plan with one GPU and a host."""
    plan = make_plan()
    gpu = replace(plan.devices[0], name="cuda:0", kind="gpu", parts=FrozenMap(parts))
    host = replace(plan.devices[0], parts=FrozenMap({"weights": 50 * MIB}))
    return replace(plan, devices=(gpu, host))


def test_every_engine_has_a_target():
    """Its files are those of one."""
    assert {engine.target for engine in ENGINES.values()} <= TARGETS.keys()


def test_weights_that_are_where_they_should_be():
    """On the device that computes, and 50 MiB of them offloaded."""
    plan = on_gpu(weights=150 * MIB)
    assert ignored(plan, [{"weights": {"cuda:0": 150 * MIB, "meta": 50 * MIB}}]) is None


def test_an_offload_that_did_nothing_is_found():
    """Everything on the GPU, or nothing of it."""
    plan = on_gpu(weights=150 * MIB)
    everything = ignored(plan, [{"weights": {"cuda:0": 200 * MIB}}])
    assert everything == "cuda:0 holds 0.20 GiB of weights, planned 0.15 GiB"
    assert "offloaded" in ignored(plan, [{"weights": {"cuda:0": 150 * MIB}}])
    assert "holds 0.00 GiB" in ignored(plan, [{"weights": {"cpu": 200 * MIB}}])
    assert "no report" in ignored(plan, [])


def test_offloaded_states_that_lie_on_the_gpu_are_found():
    """The plan's host holds the optimizer's states."""
    plan = on_gpu(weights=100 * MIB, gradients=100 * MIB)
    host = replace(plan.devices[1], parts=FrozenMap({"optimizer": 200 * MIB}))
    plan = replace(
        plan,
        devices=(plan.devices[0], host),
        workload=replace(plan.workload, task="train"),
    )
    report = {
        "rank": 0,
        "weights": {"cuda:0": 100 * MIB},
        "gradients": {},
        "optimizer": {"cpu": 200 * MIB},
    }
    assert ignored(plan, [report]) is None
    wrong = {**report, "optimizer": {"cuda:0": 200 * MIB}}
    assert ignored(plan, [wrong]) == "rank 0 holds 0.20 GiB of optimizer on its GPU, planned in cpu"


LOG = """
load_tensors: offloaded 33/33 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   {host} MiB
load_tensors:        CUDA0 model buffer size =  {gpu} MiB
"""


def test_llama_cpps_log_says_where_its_buffers_are():
    """Host buffers do not count as the GPU's."""
    plan = on_gpu(weights=150 * MIB)
    assert ignored_by_log(plan, LOG.format(host="50.00", gpu="150.25")) is None
    alone = "load_tensors: CPU_REPACK model buffer size = 200.00 MiB"
    assert ignored_by_log(plan, alone) == "it holds 0.00 GiB of weights on GPUs, planned 0.15 GiB"
    assert "names no model buffer" in ignored_by_log(plan, "error: failed to load")


def test_a_gpu_that_was_not_used_or_took_too_much_is_found():
    """By what the sampler saw."""
    from memplan.types import Comparison, DeviceComparison, Run

    def seen(peak):
        device = DeviceComparison(
            name="cuda:0",
            planned_bytes=100,
            low_bytes=90,
            high_bytes=110,
            peak_bytes=peak,
            peak_reserved_bytes=None,
            gap_bytes=None,
            within_band=None,
            parts=(),
            unaccounted_bytes=None,
        )
        run = Run(id="r", plan_id=None, command=("x",), host="h", pid=1, started_ns=0)
        return Comparison(run=run, plan_id=None, devices=(device,), verdict=None)

    assert ignored_by_peaks(seen(100)) is None
    assert "was not used" in ignored_by_peaks(seen(None))
    assert "planned at most" in ignored_by_peaks(seen(200))
