"""Plans executed: real checkpoints under a real memory limit, GPU -> host and host -> disk.

The files hold float32 and are loaded in bfloat16: weights are then private memory, which a limit
cannot push out, as it is on a GPU. (Loaded in the file's own dtype they are mapped, and a limit
only makes them slow.)
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import placement_worker
import pytest
from checkpoints import save_tiny

from memplan.emit.accelerate import files
from memplan.footprint.defaults import complete
from memplan.models.resolve import resolve
from memplan.placement.plan import make_plan
from memplan.types import Device
from memplan.units import GIB, MIB

pytestmark = pytest.mark.models
TESTS = Path(__file__).parent.parent
CONTEXT = 4

COMMON = {
    "vocab_size": 16000,
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MIXTURE = {"moe_intermediate_size": 1024, "intermediate_size": 1024}
KINDS = {
    "llama": ("LlamaForCausalLM", {}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"head_dim": 128, "sliding_window": 3, "tie_word_embeddings": True},
    ),
    "mixtral": ("MixtralForCausalLM", {**MIXTURE, "num_local_experts": 8}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 128}),
    "phi3": ("Phi3ForCausalLM", {}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 1536, "n_layer": 7, "n_head": 8, "n_positions": 256, "vocab_size": 16000},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            **MIXTURE,
            "num_key_value_heads": 8,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 128,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 48,
            "v_head_dim": 64,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 16000,
            "d_model": 1024,
            "d_kv": 128,
            "d_ff": 8192,
            "num_layers": 5,
            "num_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""What is freed goes back at once: else glibc keeps up to 64 MiB, by what was freed before."""
NOISE = 24 * MIB
"""Code that runs first, page tables, threads: beside what a plan counts."""
OWN_NAMES = ("gpt2", "t5")
"""Types whose configs call sizes otherwise."""


def host(size):
    return Device(name="cpu", kind="cpu", capacity_bytes=size)


def disk():
    return Device(name="disk", kind="disk", capacity_bytes=64 * GIB)


def filled(model):
    """Return a model of the meta device in memory, with small random weights, repeated."""
    import torch

    some = torch.randn(99_991, generator=torch.Generator().manual_seed(0)) / 32
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        flat = tensor.detach().reshape(-1)
        flat.copy_(some.repeat(flat.numel() // some.numel() + 1)[: flat.numel()])
    model.tie_weights()
    return model


class Bench:
    """One checkpoint, the same with hardly any weights, and runs of both."""

    def __init__(self, folder, kind):
        import torch
        import transformers

        self.folder = folder
        name, own = KINDS[kind]
        values = own if kind in OWN_NAMES else {**COMMON, **own}
        less = {"num_hidden_layers": 1, "n_layer": 1, "num_layers": 1}
        few = {k: less.get(k, 128 if k == "vocab_size" else v) for k, v in values.items()}
        few |= {"first_k_dense_replace": 0} if kind == "deepseek_v3" else {}
        for place, sizes in (("model", values), ("small", few)):
            config = transformers.AutoConfig.for_model(kind, **sizes)
            if kind == "gpt2":
                config.bos_token_id = config.eos_token_id = None
            with torch.device("meta"):
                model = getattr(transformers, name)(config)
            filled(model).save_pretrained(folder / place)
        self.spec = resolve(str(folder / "model"), dtype="bfloat16", exact_modules=True)

    @property
    def capacity(self):
        """Return a size of host memory that is below the model's."""
        return int(0.88 * self.spec.weight_bytes)

    def plan(self, *devices):
        work = complete({"context": CONTEXT, "runtime": "transformers"}, self.spec)
        return make_plan(self.spec, work, devices, baseline=MIB)

    def run(self, mapping, *, limit=None, name="run"):
        """Return exit code, peak above the beginning, and logits."""
        import torch

        job = {
            "folder": str(self.folder / "model"),
            "small": str(self.folder / "small"),
            "map": dict(mapping),
            "offload": str(self.folder / f"offload-{name}"),
            "limit": limit,
            "logits": str(self.folder / f"{name}.pt"),
            "context": CONTEXT,
        }
        path = self.folder / f"{name}-{os.getpid()}.json"
        path.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, TESTS / "placement_worker.py", path],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **MALLOC},
        )
        self._clean(path.stem)
        if done.returncode:
            return done.returncode, done.stderr, None
        seen = json.loads(done.stdout.splitlines()[-1])
        return 0, seen, torch.load(job["logits"])

    def expected(self):
        """Return the logits without offload and without a limit."""
        import torch
        import transformers

        job = {"folder": str(self.folder / "model"), "map": {"": "cpu"}, "offload": None}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the worker does: sums in the same order
        model = placement_worker.load(transformers, torch, job)
        logits = placement_worker.run(torch, model, {"context": CONTEXT})
        torch.set_num_threads(threads)
        return logits

    def _clean(self, name):
        for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
            group = Path(root) / f"memplan-{name}"
            if group.is_dir():
                group.rmdir()


EVERY = [pytest.param(kind, marks=pytest.mark.limits) for kind in KINDS]


@pytest.fixture(scope="module", params=EVERY)
def bench(request, tmp_path_factory):
    """One checkpoint of each architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    yield Bench(folder, request.param)
    shutil.rmtree(folder)  # 1.2 GB each


def test_a_plan_runs_within_its_band_and_answers_as_without_offload(bench):
    """Half of the weights on disk, and a limit just above the best estimate, loading included."""
    import torch

    plan = bench.plan(host(bench.capacity), disk())
    on_host, on_disk = plan.devices
    limit = on_host.total_bytes + NOISE
    assert plan.verdict.fits
    assert limit < bench.capacity < bench.spec.weight_bytes
    assert on_host.high_bytes <= bench.capacity
    assert set(plan.placement.device_map.values()) == {"cpu", "disk"}
    code, seen, logits = bench.run(plan.placement.device_map, limit=limit, name="half")
    assert code == 0, seen
    assert torch.equal(logits, bench.expected())
    print(f"{bench.spec.model_type}: of {bench.spec.weight_bytes / 1e6:.0f} MB in a limit of")
    print(f"{limit / 1e6:.0f}: {on_host.total_bytes / 1e6:.1f} planned, {seen}, {on_host.items}")
    peak = seen["peak"]
    assert on_host.low_bytes - MIB <= peak <= on_host.high_bytes  # the interpreter was there before
    assert 0.90 * on_host.total_bytes <= peak <= 1.01 * on_host.total_bytes
    written = sum(f.stat().st_size for f in bench.folder.glob("offload-half/*.safetensors"))
    assert on_disk.parts.get("weights", 0) == pytest.approx(written, rel=0.01, abs=4096)


def test_what_does_not_fit_by_the_plan_fails_in_earnest(bench):
    """Without the disk, the memory in which it fits with one is too little: the process dies."""
    plan = bench.plan(host(bench.capacity))
    assert not plan.verdict.fits
    code, said, _ = bench.run(plan.placement.device_map, limit=bench.capacity, name="tight")
    assert code == -signal.SIGKILL or (code and "memory" in said.lower())


def test_the_loader_lets_the_host_look_tokens_up(tmp_path):
    """A table that accelerate would copy whole is read where it lies, with the same answer."""
    import torch
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    folder = save_tiny(tmp_path / "model", "llama")
    spec = resolve(str(folder), exact_modules=True)
    plan = make_plan(spec, complete({"context": 40}, spec), [host(GIB)])
    for name, text in files(plan, spec).items():
        (tmp_path / name).write_text(text)
    found = importlib.util.spec_from_file_location("load", tmp_path / "load.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    model = module.load()
    tokens = torch.arange(3, 19).reshape(1, -1)
    expected = model(tokens).logits
    table = model.model.embed_tokens
    weights = {"weight": table.weight.data}
    # As dispatch_model does it for a module on "cpu" beside a GPU.
    add_hook_to_module(table, AlignDevicesHook("cpu", offload=True, weights_map=weights))
    assert table.weight.device.type == "meta"
    module.look_up_on_host(table)
    assert table.weight.device.type == "cpu"
    assert table._hf_hook.io_same_device
    assert torch.equal(model(tokens).logits, expected)
    assert table.weight.device.type == "cpu"  # nothing was dropped after the pass
