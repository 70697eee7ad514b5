"""memplan.search.find with the real planner: what is offered fits, and nothing set is changed."""

from __future__ import annotations

import shlex

import pytest
from checkpoints import LLAMA_7B, write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.cli.fit import fit as command
from memplan.cli.fit import make_planner
from memplan.cli.main import run
from memplan.search.ask import answer, free_bytes
from memplan.search.document import document
from memplan.search.find import Request, find
from memplan.search.front import best_first, undominated
from memplan.search.infer import Facts
from memplan.search.quality import weight_quality

HARDWARE = ("--host-memory", "32GiB", "--disk", "0")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Four layers of Llama-2-7B (2.0 GiB) by headers that take no space."""
    config = {**LLAMA_7B, "num_hidden_layers": 4}
    return str(write_llama(tmp_path_factory.mktemp("llama") / "llama-1b", config, "F16"))


def searched(model, *words, given_names=(), limit=6, **request):
    """Return the answer of a search, without a command line around it."""
    options = command.make_context("fit", [model, *words]).params
    planner = make_planner(options)
    names = tuple(options["device"])
    return find(
        Request(
            given={name: str(options[name]) for name in given_names},
            facts=Facts(
                most_context=4096,
                vendor=None,
                compute=None,
                named=len(names),
                repeatable=len(names) == 1,
            ),
            command=lambda changed: f"memplan plan {sorted(changed.items(), key=str)}",
            limit=limit,
            **request,
        ),
        lambda questions: [answer(question, planner) for question in questions],
    ), planner


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(1000, 5000),
    batch=st.sampled_from([None, 1, 4]),
    quant=st.sampled_from([None, "nf4", "q4_k_m"]),
    runtime=st.sampled_from([None, "vllm", "llama.cpp"]),
)
def test_each_line_fits_when_it_is_planned_again(llama, size, batch, quant, runtime):
    """Whatever is given: the plan of a line fits, says what it said, and keeps what was set."""
    chosen = {"batch": batch, "quant": quant, "runtime": runtime}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if quant == "q4_k_m" and runtime == "vllm":
        return
    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    if quant == "q4_k_m" and runtime is None:
        words += ["--runtime", "llama.cpp"]
        chosen["runtime"] = "llama.cpp"
    if quant == "nf4" and runtime in ("vllm", "llama.cpp"):
        return
    found, planner = searched(
        llama, *words, "--device", f"{size}MiB", *HARDWARE, given_names=("device", *chosen)
    )
    for one in found.alternatives:
        plan = planner(one.changes)
        assert plan.verdict.fits
        assert free_bytes(plan) == one.free_bytes >= 0
        assert not one.changes.keys() & {"device", *chosen}
        for name, value in chosen.items():
            assert getattr(plan.workload, name) == value
        for room in one.rooms:
            grown = planner({**one.changes, room.option: room.value})
            assert grown.verdict.fits
            assert room.value >= getattr(plan.workload, room.option)


def test_a_smaller_gpu_never_takes_a_larger_batch(llama):
    """Nor a longer context, line by line."""
    last = {}
    for size in (4096, 3584, 3072, 2816):
        found, _ = searched(
            llama,
            "--device",
            f"{size}MiB",
            *HARDWARE,
            "--runtime",
            "vllm",
            "--gpus",
            "1",
            given_names=("device", "runtime", "gpus"),
            limit=50,
        )
        now = {
            (one.settings.get("quant"), one.settings.get("kv_dtype"), room.option): room.value
            for one in found.alternatives
            for room in one.rooms
        }
        assert now
        for key, value in now.items():
            assert value <= last.get(key, value)
        last = now


def test_the_front_has_no_line_that_another_beats(llama):
    """And the search of what is left finds nothing more to drop."""
    found, _ = searched(llama, "--device", "2GiB", *HARDWARE, given_names=("device",), limit=60)
    lines = list(found.alternatives)
    assert len(lines) > 5
    assert undominated(lines) == lines
    assert {one.command for one in best_first(lines)} == {one.command for one in lines}
    assert lines[0].weight <= min(one.weight for one in lines)


def test_what_fits_as_asked_comes_first_and_gives_nothing_up(llama):
    """With the room that is left."""
    found, _ = searched(llama, "--device", "5GiB", *HARDWARE, given_names=("device",))
    assert found.asked.verdict.fits
    assert found.binding is None
    assert found.alternatives[0].settings == {}
    assert found.alternatives[0].costs == ()
    assert {room.option for room in found.rooms} == {"context", "batch"}
    rooms = {room.option: room for room in found.rooms}
    assert rooms["context"].limit == "model"
    assert rooms["context"].value == 4096


def test_where_nothing_fits_the_nearest_let_go_of_one_constraint(llama):
    """The binding part is named, and each proposal changes what was set."""
    words = ("--device", "1536MiB", "--host-memory", "1GiB", "--disk", "0", "--quant", "none")
    words += ("--runtime", "transformers", "--gpus", "1")
    names = ("device", "quant", "runtime", "gpus")
    found, planner = searched(llama, *words, given_names=names, devices=("4GiB", "8GiB"))
    assert not found.alternatives
    assert found.binding is not None
    assert found.binding.part == "weights"
    assert found.binding.lacks_bytes > 0
    assert found.nearest
    freed = {name for one in found.nearest for name in one.changes}
    assert {"gpus", "device"} <= freed
    assert all(planner(one.changes).verdict.fits for one in found.nearest)


def test_a_shorter_context_is_offered_only_where_nobody_set_it(llama):
    """Eight sequences of 4096 tokens (1 GiB in fp8) do not fit beside 4-bit weights."""
    words = ("--device", "2200MiB", "--host-memory", "1GiB", "--disk", "0", "--batch", "8")
    words += ("--runtime", "vllm", "--gpus", "1")
    names = ("device", "runtime", "gpus", "batch")
    free, _ = searched(llama, *words, given_names=names)
    held, _ = searched(llama, *words, "--context", "4096", given_names=(*names, "context"))
    assert free.alternatives
    assert all(one.plan.workload.context == 4096 for one in held.alternatives)
    shorter = [one for one in free.alternatives if one.plan.workload.context < 4096]
    assert len(shorter) == len(free.alternatives)
    for one in shorter:
        assert any(cost.option == "context" for cost in one.costs)


def test_trainings_give_up_little_before_much(llama):
    """Full training needs several GPUs; adapters come first, and the batch can grow."""
    words = ("--task", "train", "--device", "6GiB", "--seq", "1024", "--estimator", "formula")
    found, planner = searched(
        llama, *words, *HARDWARE, given_names=("task", "device", "seq", "estimator")
    )
    assert not found.asked.verdict.fits
    methods = [one.plan.workload.method for one in found.alternatives]
    assert methods[0] == "lora"
    assert "full" in methods
    for one in found.alternatives:
        assert planner(one.changes).verdict.fits
        batch = next(room.value for room in one.rooms if room.option == "batch")
        assert not planner({**one.changes, "batch": batch + 1}).verdict.fits


def test_a_step_sees_as_many_sequences_as_are_wanted(llama):
    """Batch, micro-batches and GPUs multiply to it."""
    words = ("--task", "train", "--device", "6GiB", "--seq", "1024", "--estimator", "formula")
    found, _ = searched(
        llama, *words, *HARDWARE, given_names=("task", "device", "seq", "estimator"), sequences=24
    )
    assert found.alternatives
    for one in found.alternatives:
        work = one.plan.workload
        assert work.batch * (work.grad_accum or 1) * work.gpus == 24


def test_the_document_has_whole_bytes_and_runnable_commands(llama, capsys):
    """What a program reads: ranks, null for unknown, the command."""
    found, _ = searched(llama, "--device", "5GiB", *HARDWARE, given_names=("device",))
    data = document(found)
    assert data["schema"] == "memplan.fit/1"
    assert [row["rank"] for row in data["alternatives"]] == list(
        range(1, len(data["alternatives"]) + 1)
    )
    for row in data["alternatives"]:
        for name in ("total_bytes", "high_bytes", "free_bytes", "offloaded_bytes"):
            assert isinstance(row[name], int)
        assert row["fits"] is True


def test_commands_plan_what_they_stand_beside(llama, capsys):
    """Each printed command is typed again: it fits and has the same peak."""
    import json

    assert run(["fit", llama, "--device", "2GiB", *HARDWARE, "--jobs", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["alternatives"]
    for row in rows:
        words = shlex.split(row["command"])
        assert words[:2] == ["memplan", "plan"]
        assert run([*words[1:], "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        gpus = [device for device in plan["devices"] if device["kind"] == "gpu"]
        assert max(device["total_bytes"] for device in gpus) == row["total_bytes"]


def test_a_quality_note_names_its_source():
    """No figure without one; a format that nobody measured here has no note."""
    for name in ("q4_k_m", "iq2_xxs", "nf4", "awq-4bit-g128", "fp8", "int8"):
        quality = weight_quality(name)
        assert quality is not None
        assert quality.note
        assert quality.source
    unknown = weight_quality("exl3-4bpw")
    assert unknown is not None
    assert unknown.note == unknown.source == ""
    assert weight_quality("none") is None
