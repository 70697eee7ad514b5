"""What others would do with the same model and room: their maps charged by the same rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memplan.placement.cost import decode_speed, speeds
from memplan.placement.engines import EngineProfile, profile_of
from memplan.placement.exact import Exact, exact_fill, exact_spread
from memplan.placement.several import blocks_of
from memplan.placement.units import Unit, cut
from memplan.runtimes import runtime
from memplan.types import Beside, Device, Ledger, ModelSpec, Plan, Range
from memplan.units import format_bytes

__all__ = ["map_beside", "optimum_beside", "room_for_weights"]

_MOVES = ("weights", "reload_buffer", "prefetch_buffer")
"""Items of a ledger that a planner of weights decides."""


def room_for_weights(plan: Plan) -> dict[str, int]:
    """Return what each device offers for weights and the reload buffer, in bytes.

    Capacity less reserve, cache, activations, buffers and context, by upper ends of their bands
    where the plan stays within them, else by best estimates.
    """
    return {x.name: _room(x) for x in plan.devices if x.kind != "disk"}


def _room(ledger: Ledger) -> int:
    moves = sum(ledger.items.get(name, 0) for name in _MOVES)
    within = ledger.high_bytes + ledger.reserve_bytes <= ledger.capacity_bytes
    total = ledger.high_bytes if within else ledger.total_bytes
    return ledger.capacity_bytes - ledger.reserve_bytes - (total - moves)


def map_beside(
    name: str, spec: ModelSpec, plan: Plan, mapping: Mapping[str, str], devices: Sequence[Device]
) -> Beside:
    """Return another planner's device_map beside a plan.

    Args:
        name: who made it.
        spec: the model, with its modules' names.
        plan: ours, for the same devices.
        mapping: module path -> device name.
        devices: of the plan.
    """
    units = cut(spec)
    where = {unit.position: place_of(unit.names[0], mapping) for unit in units}
    gpus = [device.name for device in devices if device.kind == "gpu"]
    engine = profile_of(plan.workload)
    away = [unit for unit in units if where[unit.position] not in gpus]
    held = {gpu: sum(u.weight_bytes for u in units if where[u.position] == gpu) for gpu in gpus}
    main = next((gpu for gpu in gpus if held[gpu]), None)
    if main is not None:
        held[main] += engine.buffer_bytes(away)
    room = room_for_weights(plan)
    over = {gpu: size - room[gpu] for gpu, size in held.items() if size > room[gpu]}
    resident = sum(unit.weight_bytes for unit in units if where[unit.position] in gpus)
    note = "" if main is not None or not away else f"{gpus[0]} stays unused: the host computes"
    if over:
        gpu, size = max(over.items(), key=lambda item: item[1])
        note = f"{gpu} lacks {format_bytes(size)} once a streamed module is copied there"
    return Beside(
        name=name,
        resident_bytes=resident,
        difference_bytes=_served(plan, units) - resident,
        runs=not over,
        note=note,
        decode_tokens_per_s=_speed(units, where, engine, devices) if main else Range(),
    )


def place_of(module: str, mapping: Mapping[str, str]) -> str:
    """Return the device that a map gives a module, by the module itself or what is above it.

    Where a map names only what is inside it, the place of the first of those.
    """
    name = module
    while name:
        if name in mapping:
            return mapping[name]
        name = name.rpartition(".")[0]
    inside = (place for key, place in mapping.items() if key.startswith(f"{module}."))
    return mapping[""] if "" in mapping else next(inside, "disk")


def _served(plan: Plan, units: Sequence[Unit]) -> int:
    """Return a plan's weights that no token waits for: resident, or looked up by the host."""
    gpus = {ledger.name for ledger in plan.devices if ledger.kind == "gpu"}
    mapping = plan.placement.device_map
    looked_up = set(plan.placement.host_lookup)
    return sum(
        unit.weight_bytes
        for unit in units
        if place_of(unit.names[0], mapping) in gpus or looked_up & set(unit.names)
    )


def _speed(
    units: Sequence[Unit],
    where: Mapping[int, str],
    engine: EngineProfile,
    devices: Sequence[Device],
) -> Range:
    return decode_speed(units, where, engine, speeds(devices))


def optimum_beside(spec: ModelSpec, plan: Plan, devices: Sequence[Device]) -> Beside | None:
    """Return what integer programming proves to be the most that can stay, beside a plan.

    None where nothing streams by modules, so that there is nothing to prove.

    Raises MissingDependencyError without scipy.
    """
    engine = profile_of(plan.workload)
    gpus = [device for device in devices if device.kind == "gpu"]
    if engine.grain != "module" or not gpus or plan.workload.pin:
        return None
    units = cut(spec)
    room = room_for_weights(plan)
    if len(gpus) == 1:
        found = exact_fill(units, room[gpus[0].name], engine=engine)
    else:
        found = _spread(spec, plan, units, room, engine)
    if found is None:
        return None
    return _optimum_row(found, plan, units)


def _spread(
    spec: ModelSpec,
    plan: Plan,
    units: Sequence[Unit],
    room: Mapping[str, int],
    engine: EngineProfile,
) -> Exact | None:
    rules = runtime(plan.workload.runtime)
    cache = [rules.layer_cache_bytes(spec, layer, plan.workload) for layer in spec.layers]
    blocks = blocks_of(units, cache, buffers=spec.exact_modules)
    books = [ledger for ledger in plan.devices if ledger.kind == "gpu"]
    moving = ("kv_cache", "state_cache", *(("buffers",) if spec.exact_modules else ()))
    budgets = [
        room[ledger.name] + sum(ledger.items.get(name, 0) for name in moving) for ledger in books
    ]
    loads = [block.cache_bytes for block in blocks]
    pieces = [block.units for block in blocks]
    found = (
        exact_spread(pieces, loads, budgets[main:], engine=engine) for main in range(len(budgets))
    )
    best = [one for one in found if one is not None]
    return max(best, key=lambda one: one.gain_bytes, default=None)


def _optimum_row(found: Exact, plan: Plan, units: Sequence[Unit]) -> Beside:
    note = "proven" if not found.gap else f"proven within {100 * found.gap:.2g} %"
    return Beside(
        name="optimum",
        resident_bytes=found.gain_bytes,
        difference_bytes=_served(plan, units) - found.gain_bytes,
        runs=True,
        note=f"{note} by HiGHS, without lookups by the host",
    )
