"""memplan.placement.loading: what the host holds while a checkpoint is read."""

from __future__ import annotations

import pytest
from checkpoints import save_tiny

from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.placement.loading import loading_bytes, loading_line
from memplan.placement.plan import make_plan
from memplan.placement.units import Unit
from memplan.types import Device, Tensor
from memplan.units import GIB, MIB


def unit(position, name, size):
    tensor = Tensor(
        name=f"{name}.weight", shape=(size,), dtype="int8", bytes=size, kind="parameter"
    )
    return Unit(
        names=(name,),
        layer=None,
        position=position,
        weight_bytes=size,
        buffer_bytes=0,
        reload_bytes=size,
        tensors=(tensor,),
    )


def test_two_tensors_for_the_disk_are_held_at_once():
    """The loop keeps one until the next has been read; what stays is there beside them."""
    units = [unit(0, "a", 10), unit(1, "b", 30), unit(2, "c", 50)]
    assert loading_bytes(units, {1, 2}) == 10 + 30 + 50


def test_what_stays_is_no_transient():
    """After a tensor that stays, only the next one is new."""
    units = [unit(0, "a", 30), unit(1, "b", 10), unit(2, "c", 50)]
    assert loading_bytes(units, {0, 2}) == 10 + 50
    assert loading_bytes(units, set()) == 90


def test_layers_are_read_by_number():
    """Layer 2 before layer 10: the large pair is then not in succession."""
    units = [unit(0, "h.2", 40), unit(1, "h.10", 1), unit(2, "h.3", 50)]
    assert loading_bytes(units, {0, 2}) == 90


def test_experts_of_a_file_are_merged_while_their_pieces_are_there():
    """Pieces and the merged tensor, twice the size of all together."""
    units = [unit(0, "h.0.experts.0", 8), unit(1, "h.0.experts.1", 8)]
    assert loading_bytes(units, {0, 1}) == 32


def test_gates_and_up_projections_of_experts_are_merged_into_one_tensor():
    """The down-projections before them are held meanwhile, when they went to the disk."""
    sizes = {"down_proj": 4, "gate_proj": 5, "up_proj": 5}
    units = [
        unit(position, f"h.0.experts.{i}.{name}", size)
        for position, (i, (name, size)) in enumerate(
            (i, pair) for i in range(2) for pair in sizes.items()
        )
    ]
    assert loading_bytes(units, set(range(6))) == 8 + 2 * 20
    assert loading_bytes(units, set()) == 8 + 2 * 20


def test_there_is_no_line_where_running_takes_more():
    """The line is what loading takes beyond running."""
    units = [unit(0, "a", 10), unit(1, "b", 30)]
    assert loading_line(units, {1}, 40) == []
    assert loading_line(units, set(), 0) == []
    (line,) = loading_line(units, {1}, 25)
    assert (line.low_bytes, line.bytes, line.high_bytes) == (0, 15, 15)


@pytest.mark.models
def test_a_host_with_a_disk_is_charged_for_loading(tmp_path):
    """The ledger names it, and a budget that only running would meet keeps less."""
    spec = resolve(str(save_tiny(tmp_path / "model", "llama")), exact_modules=True)
    work = complete({"context": 8, "runtime": "transformers"}, spec)
    disk = Device(name="disk", kind="disk", capacity_bytes=GIB)

    def planned(size):
        host = Device(name="cpu", kind="cpu", capacity_bytes=size)
        return make_plan(spec, work, [host, disk], baseline=MIB).devices[0]

    whole = planned(GIB)
    assert "loading" not in whole.items
    half = planned(whole.total_bytes - spec.weight_bytes // 2)
    assert half.items["loading"] > 0
    assert half.total_bytes == sum(half.items.values()) <= half.capacity_bytes
