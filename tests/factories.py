"""Small complete examples of the core types; every keyword replaces one field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memplan.types import (
    Device,
    Footprint,
    FrozenMap,
    Ledger,
    Line,
    ModelSummary,
    Phase,
    Placement,
    Plan,
    Range,
    Run,
    Sample,
    Series,
    Verdict,
    Workload,
)
from memplan.units import GIB, MIB

T0 = 1_760_000_000_000_000_000
"""A wall clock reading in nanoseconds (October 2025)."""


def make_line(**changes: Any) -> Line:
    line = Line(
        part="weights",
        bytes=200 * MIB,
        low_bytes=200 * MIB,
        high_bytes=200 * MIB,
        basis="exact",
        source="safetensors headers",
    )
    return replace(line, **changes)


def make_footprint() -> Footprint:
    return Footprint(
        lines=(
            make_line(),
            make_line(part="kv_cache", bytes=8 * MIB, low_bytes=8 * MIB, high_bytes=8 * MIB),
            make_line(
                part="activations",
                bytes=30 * MIB,
                low_bytes=20 * MIB,
                high_bytes=50 * MIB,
                basis="formula",
                source="prefill, sdpa",
            ),
            make_line(
                part="overhead",
                bytes=400 * MIB,
                low_bytes=300 * MIB,
                high_bytes=600 * MIB,
                basis="assumed",
                source="interpreter and libraries",
            ),
        )
    )


def make_plan(**changes: Any) -> Plan:
    footprint = make_footprint()
    plan = Plan(
        id="p-1",
        model=ModelSummary(
            name="tiny-llama",
            architecture="LlamaForCausalLM",
            source="safetensors",
            parameters=100 * 10**6,
            active_parameters=None,
            layers=12,
            weight_format="bfloat16",
        ),
        workload=Workload(context=512, batch=1, kv_dtype="bfloat16", assumed=("batch",)),
        footprint=footprint,
        devices=(
            Ledger(
                name="cpu",
                kind="cpu",
                capacity_bytes=1 * GIB,
                reserve_bytes=0,
                parts=FrozenMap(
                    {
                        "weights": 150 * MIB,
                        "kv_cache": 8 * MIB,
                        "activations": 30 * MIB,
                        "overhead": 400 * MIB,
                    }
                ),
                low_bytes=478 * MIB,
                high_bytes=808 * MIB,
            ),
            Ledger(
                name="disk",
                kind="disk",
                capacity_bytes=100 * GIB,
                reserve_bytes=0,
                parts=FrozenMap({"weights": 50 * MIB}),
                low_bytes=50 * MIB,
                high_bytes=50 * MIB,
            ),
        ),
        placement=Placement(
            device_map=FrozenMap({"model.embed_tokens": "cpu", "lm_head": "disk"}),
            offloaded_bytes=50 * MIB,
            streamed_bytes_per_token=50 * MIB,
            decode_tokens_per_s=Range(value=20.0, low=10.0, high=40.0),
            policy="fullest first",
        ),
        verdict=Verdict(fits=True, reason="fits with 436 MiB free on cpu"),
        created_ns=T0,
        memplan_version="0.1.0",
    )
    return replace(plan, **changes)


def make_run(**changes: Any) -> Run:
    run = Run(
        id="r-1",
        plan_id="p-1",
        command=("python", "train.py"),
        host="node1",
        pid=4711,
        started_ns=T0,
        ended_ns=T0 + 60 * 10**9,
        exit_code=0,
        status="finished",
        versions=FrozenMap({"memplan": "0.1.0"}),
    )
    return replace(run, **changes)


def make_phase(**changes: Any) -> Phase:
    phase = Phase(
        run_id="r-1",
        name="load",
        pid=4711,
        started_ns=T0 + 10**9,
        ended_ns=T0 + 3 * 10**9,
        counters=FrozenMap({"cpu.weights": 150 * MIB, "process.rss": 600 * MIB}),
    )
    return replace(phase, **changes)


def make_sample(
    value: int = 600 * MIB,
    *,
    seconds: float = 0.0,
    run_id: str | None = "r-1",
    entity: str = "tree",
    metric: str = "rss_bytes",
) -> Sample:
    series = Series(run_id=run_id, entity=entity, metric=metric)
    return Sample(series=series, t_ns=T0 + int(seconds * 10**9), value=value)


def make_device(**changes: Any) -> Device:
    device = Device(name="cpu", kind="cpu", capacity_bytes=24 * GIB, source="test")
    return replace(device, **changes)
