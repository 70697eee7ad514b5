"""memplan.measure: phases and counters, to the byte, and never in the program's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from checkpoints import save_tiny

from memplan import measure
from memplan.measure import process_counters, tensor_counters, torch_counters, track
from memplan.measure.exact import peak_of

STATUS = """Name:\tpython
VmPeak:\t  999 kB
VmHWM:\t  400 kB
VmRSS:\t  300 kB
RssAnon:\t  200 kB
RssFile:\t  100 kB
"""


def test_process_counters_are_read_from_the_kernels_status(tmp_path):
    """KB are 1024 bytes; no /proc, no counters."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(STATUS)
    assert process_counters(tmp_path) == {
        "process.hwm": 400 * 1024,
        "process.rss": 300 * 1024,
        "process.rss_anon": 200 * 1024,
        "process.rss_file": 100 * 1024,
    }
    assert process_counters(tmp_path / "none") == {}


def test_importing_it_imports_no_torch():
    """A program decides itself what it loads."""
    program = (
        "import sys\nfrom memplan import measure\n"
        "with measure.track('x') as t: pass\n"
        "print('torch' in sys.modules, 'sqlalchemy' in sys.modules, t.phase.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "x"]


def test_a_phase_has_its_times_and_counters():
    """Nested, repeated, and as a decorator."""
    with track("outer") as outer:
        with track("inner") as inner:
            pass
        assert outer.phase is None
    assert outer.phase.started_ns <= inner.phase.started_ns
    assert inner.phase.ended_ns <= outer.phase.ended_ns
    assert outer.phase.pid == os.getpid()
    assert outer.phase.counters["process.rss"] > 2**20

    @track("work")
    def work(value):
        return value + 1

    assert [work(1), work(2)] == [2, 3]


def test_a_phase_that_fails_is_counted_all_the_same():
    """The error goes on its way."""
    marked = track("broken")
    with pytest.raises(ZeroDivisionError), marked:
        1 / 0  # noqa: B018
    assert marked.phase.ended_ns


@pytest.mark.parametrize(
    ("changes", "peak"), [([], 0), ([5, -5, 3], 5), ([-4, 2], 0), ([5, -2, 4], 7)]
)
def test_a_peak_is_the_highest_running_sum(changes, peak):
    """From 0 at the beginning."""
    assert peak_of(changes) == peak


def test_a_sampler_that_is_gone_is_told_once_and_stops_nothing(tmp_path):
    """One line on standard error, the program's own exit code."""
    program = (
        "from memplan import measure\n"
        "for i in range(3):\n"
        "    with measure.track('x'): pass\n"
        "print('done')"
    )
    environment = {
        **os.environ,
        "MEMPLAN_RUN": "r-1",
        "MEMPLAN_SOCKET": str(tmp_path / "nobody.sock"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout == "done\n"
    assert done.stderr.count("phases are not recorded") == 1


def test_phases_are_stored_with_their_run(home):
    """Under `memplan run`, without a daemon."""
    program = (
        "from memplan import measure\n"
        "with measure.track('load'): pass\n"
        "with measure.track('load'): pass\n"
    )
    subprocess.run(
        [sys.executable, "-m", "memplan", "run", "--", sys.executable, "-c", program],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "show", "last", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    document = json.loads(done.stdout)
    assert [phase["name"] for phase in document["phases"]] == ["load", "load"]
    assert all(phase["run_id"] == document["id"] for phase in document["phases"])


@pytest.mark.models
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_weights_gradients_and_states_are_counted_to_the_byte(tmp_path, kind):
    """Tied weights once."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, kind))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.ones(1, 8, dtype=torch.long)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    size = sum(p.numel() * 4 for p in model.parameters())
    count = sum(1 for p in model.parameters() if p.grad is not None)
    counters = tensor_counters(model, optimizer)
    assert counters["cpu.weights"] == size
    assert counters["cpu.gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert counters["cpu.optimizer"] == 2 * counters["cpu.gradients"] + 4 * count


@pytest.mark.models
def test_caches_are_counted_to_the_byte(tmp_path):
    """Keys and values of every layer, and the counters of sliding ones."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, "llama"))
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad(), track("prefill", model=model, cache=cache) as marked:
        model(torch.ones(2, 10, dtype=torch.long), past_key_values=cache)
    assert marked.phase.counters["cpu.kv_cache"] == 3 * 2 * (2 * 10 * 2 * 16) * 4


@pytest.mark.models
def test_offloaded_weights_are_counted_where_they_lie(tmp_path):
    """Accelerate keeps them in the checkpoint: disk.weights."""
    import transformers

    folder = save_tiny(tmp_path / "model", "llama")
    names = ["model.embed_tokens", "model.norm", "lm_head", "model.rotary_emb"]
    places = {**dict.fromkeys(names, "cpu"), "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=str(tmp_path / "off")
    )
    layer = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
    counters = tensor_counters(model)
    assert counters["disk.weights"] == 2 * layer
    assert counters["cpu.weights"] == layer + (2 * 128 * 64 + 64) * 4


@pytest.mark.models
def test_an_exact_phase_knows_the_peak_between_its_ends():
    """Memory that is gone at the end was there: 3 MB and 5 MB at once."""
    import torch

    with track("work", exact=True) as marked:
        first = torch.zeros(3_000_000, dtype=torch.uint8)
        second = torch.zeros(5_000_000, dtype=torch.uint8)
        del first, second
        third = torch.zeros(1_000_000, dtype=torch.uint8)
        with track("inner", exact=True) as inner:
            pass
    del third
    assert marked.phase.counters["cpu.peak_allocated"] == 8_000_000
    assert "cpu.peak_allocated" not in inner.phase.counters


@pytest.mark.models
def test_without_a_gpu_there_are_no_gpu_counters():
    """Not available is absent, not 0."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        pytest.skip("a GPU is in use here")
    assert torch_counters() == {}


@pytest.mark.models
def test_the_trainers_callback_marks_each_part_of_a_step(tmp_path, monkeypatch):
    """Two micro-batches a step, three steps, two of them reported."""
    import torch
    import transformers

    seen = []
    monkeypatch.setattr("memplan.measure.agent.report", seen.append)
    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "m", "llama"))
    data = [{"input_ids": torch.arange(3, 11), "labels": torch.arange(3, 11)}] * 6
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_steps=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[measure.trainer_callback(steps=2)],
    )
    trainer.train()
    seen = [phase for phase in seen if phase.ended_ns is not None]
    names = [phase.name for phase in seen]
    step = ["forward", "backward", "forward", "backward", "optimizer_step"]
    assert names == ["train_begin", *step, *step]
    size = sum(p.numel() * 4 for p in model.parameters())
    last = seen[-1].counters
    assert last["cpu.weights"] == last["cpu.gradients"] == size
    assert last["cpu.optimizer"] == 2 * size + 4 * sum(1 for _ in model.parameters())
    assert not model._forward_hooks
