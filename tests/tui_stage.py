"""What the dashboard's tests share: a filled database, a frozen clock, the text of the screen."""

from __future__ import annotations

import asyncio

from factories import T0, make_phase, make_plan, make_run, make_sample
from memplan_tui.app import MemplanApp

from memplan.store.writer import LocalWriter
from memplan.types import FrozenMap
from memplan.units import GIB, MIB

S = 10**9
NOW = T0 + 120 * S


def big_plan(**changes):
    """Return a plan whose layers lie on three devices."""
    homes = {f"model.layers.{i}": "cuda:0" if i < 7 else "cpu" for i in range(11)}
    homes |= {"model.embed_tokens": "cuda:0", "model.layers.11": "disk", "lm_head": "disk"}
    plan = make_plan()
    from dataclasses import replace

    placement = replace(plan.placement, device_map=FrozenMap(homes))
    first = replace(plan.devices[0], name="cuda:0", kind="gpu")
    return replace(plan, placement=placement, devices=(first, *plan.devices), **changes)


def fill(database):
    """Store a finished run with a plan, a failed one without, and the machine's samples."""
    with LocalWriter(database) as writer:
        writer.save_plan(make_plan())
        writer.save_run(make_run(command=("python", "generate.py"), host="node1"))
        writer.save_run(
            make_run(
                id="r-0",
                plan_id=None,
                host="node2",
                command=("python", "train.py", "--steps", "10"),
                started_ns=T0 - 3600 * S,
                ended_ns=T0 - 3500 * S,
                exit_code=9,
                status="failed",
            )
        )
        writer.save_phases(
            [
                make_phase(),
                make_phase(name="decode", started_ns=T0 + 20 * S, ended_ns=T0 + 50 * S),
            ]
        )
        for i in range(120):
            value = (300 + 310 * min(i, 40) // 40) * MIB
            host = {"run_id": None, "entity": "host", "seconds": i}
            writer.write_samples(
                [
                    make_sample(value, seconds=i / 2),
                    make_sample(value, seconds=i / 2, metric="hwm_bytes"),
                    make_sample(value, seconds=i / 2, entity="process:4711"),
                    make_sample(24 * GIB, metric="total_bytes", **host),
                    make_sample((14 - i % 7) * GIB, metric="available_bytes", **host),
                    make_sample((10 + i % 7) * GIB, metric="used_bytes", **host),
                ]
            )


def app_on(database, **options):
    """Return the program on a database, its clock two minutes after the runs began."""
    return MemplanApp(database, **{"unit": "MiB", "now_ns": lambda: NOW, **options})


def text_of(app):
    """Return what is on the screen."""
    strips = app.screen._compositor.render_strips()
    lines = ["".join(segment.text for segment in strip).rstrip() for strip in strips]
    return "\n".join(lines).rstrip() + "\n"


async def until(app, condition, what="the screen"):
    """Wait until a condition on the screen's text holds."""
    if isinstance(condition, str):
        wanted = condition

        def condition(text):
            return wanted in text

    for _ in range(300):
        if condition(text_of(app)):
            return text_of(app)
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what} never came:\n{text_of(app)}")
