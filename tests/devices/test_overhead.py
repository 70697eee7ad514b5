"""The table of what a process takes beside its tensors."""

from __future__ import annotations

import datetime as dt

import pytest
from click.testing import CliRunner

from memplan.cli.main import cli, run
from memplan.devices.overhead import fixed_costs, overhead_rows, table_version
from memplan.devices.parse import parse_hardware
from memplan.errors import DeviceError
from memplan.footprint.overhead import context_line, cost_line, overhead_line
from memplan.runtimes import RUNTIMES
from memplan.units import MIB


def costs(device, *, runtime="transformers", gpus=1):
    found = parse_hardware([device], host_memory=1 << 30, disk=0).devices[0]
    rows = fixed_costs(vendor=found.vendor, compute=found.compute, runtime=runtime, gpus=gpus)
    return {cost.name: cost for cost in rows}


def test_every_row_has_a_source_and_a_sensible_interval():
    """And no two rows speak of the same case."""
    cases = set()
    for row in overhead_rows():
        assert 0 <= row.low_bytes <= row.typical_bytes <= row.high_bytes, row
        assert len(row.source) > 10, row
        assert row.measured_on, row
        for compute in row.compute or (None,):
            case = (row.component, row.vendor, compute, row.runtime, row.gpus)
            assert case not in cases
            cases.add(case)
    dt.date.fromisoformat(table_version())


def test_every_engine_has_a_cost_on_every_gpu():
    """Nothing is zero where it is only unknown: the widest range answers."""
    for runtime in RUNTIMES:
        for device in ("24GiB", "rtx4090", "h100-sxm", "mi300x", "t4"):
            found = costs(device, runtime=runtime)
            assert "context" in found
            assert found["context"].high_bytes > found["context"].low_bytes


def test_a_generation_has_its_own_context_and_workspace():
    """The workspace of cuBLAS: 32 MiB on Hopper, 8,519,680 B before (CublasHandlePool.cpp)."""
    assert costs("h100-sxm")["cublas workspace"].bytes == 32 * MIB
    assert costs("rtx4090")["cublas workspace"].bytes == 8_519_680
    unknown = costs("24GiB")["cublas workspace"]
    assert (unknown.low_bytes, unknown.high_bytes) == (8_519_680, 32 * MIB)
    assert costs("rtx4090")["context"].high_bytes < costs("24GiB")["context"].high_bytes
    assert costs("rtx4090")["context"] != costs("rtx5090")["context"]


def test_an_engine_has_what_it_uses():
    """CUDA graphs in vLLM only, NCCL only among several GPUs."""
    assert "cuda graphs" in costs("h100-sxm", runtime="vllm")
    assert "cuda graphs" not in costs("h100-sxm")
    assert "nccl" not in costs("h100-sxm", runtime="vllm")
    assert costs("h100-sxm", runtime="vllm", gpus=2)["nccl"].bytes == 342_000_000
    assert costs("h100-sxm", runtime="vllm", gpus=8)["nccl"].bytes == 392_000_000
    assert "cublas workspace" in costs("rtx4090", runtime="llama.cpp")


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_the_line_is_the_sum_of_its_costs(runtime):
    """Its ends are the sums of the ends; without costs the widest range stands."""
    rows = tuple(costs("rtx4090", runtime=runtime, gpus=2).values())
    line = RUNTIMES[runtime].overhead_line("gpu", None, rows)
    assert line == cost_line(rows)
    assert line.bytes == sum(cost.bytes for cost in rows)
    assert line.high_bytes == sum(cost.high_bytes for cost in rows)
    assert all(cost.name in line.source for cost in rows)
    assert RUNTIMES[runtime].overhead_line("gpu").high_bytes > line.low_bytes


def test_without_costs_the_published_range_stands():
    """A library's caller need not know the GPU."""
    assert overhead_line("gpu") == context_line()


def test_a_number_that_is_no_size_is_no_gpu(capsys):
    """4090 bytes were meant otherwise, and the hint says how."""
    with pytest.raises(DeviceError, match="a GPU of 4090 bytes is none") as caught:
        parse_hardware(["4090"])
    assert "rtx4090" in caught.value.hint
    assert parse_hardware(["24GiB"], disk=0).devices[0].capacity_bytes == 24 << 30


def test_the_program_prints_the_table():
    """With sources, as text and in the JSON."""
    text = CliRunner().invoke(cli, ["devices", "--overhead"]).output
    assert f"published until {table_version()}" in text
    assert "CublasHandlePool.cpp" in text
    assert run(["devices", "--overhead"]) == 0
