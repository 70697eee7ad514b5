"""Plans executed: real checkpoints under a real memory limit, GPU -> host and host -> disk.

The files hold float32 and are loaded in bfloat16: weights are then private memory, which a limit
cannot push out, as it is on a GPU. (Loaded in the file's own dtype they are mapped, and a limit
only makes them slow.)
"""

from __future__ import annotations

import importlib.util
import json
import os
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
CONTEXT = 64

COMMON = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MIXTURE = {"moe_intermediate_size": 512, "intermediate_size": 768}
KINDS = {
    "llama": ("LlamaForCausalLM", {}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {"head_dim": 64, "sliding_window": 32, "tie_word_embeddings": True},
    ),
    "mixtral": ("MixtralForCausalLM", {**MIXTURE, "num_local_experts": 8}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "phi3": ("Phi3ForCausalLM", {}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 256, "vocab_size": 32000},
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
            "vocab_size": 32000,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
OWN_NAMES = ("gpt2", "t5")
"""Types whose configs call sizes otherwise."""


def host(size):
    return Device(name="cpu", kind="cpu", capacity_bytes=size)


def disk():
    return Device(name="disk", kind="disk", capacity_bytes=64 * GIB)


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
        torch.manual_seed(0)
        for place, sizes in (("model", values), ("small", few)):
            config = transformers.AutoConfig.for_model(kind, **sizes)
            if kind == "gpt2":
                config.bos_token_id = config.eos_token_id = None
            getattr(transformers, name)(config).save_pretrained(folder / place)
        self.spec = resolve(str(folder / "model"), dtype="bfloat16", exact_modules=True)

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
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )
        self._clean(path.stem)
        if done.returncode:
            return done.returncode, done.stderr, None
        peak = json.loads(done.stdout.splitlines()[-1])["peak"]
        return 0, peak, torch.load(job["logits"])

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
    return Bench(tmp_path_factory.mktemp(request.param), request.param)


def test_a_plan_runs_within_its_band_and_answers_as_without_offload(bench):
    """A good third of the weights on disk; the limit is the upper end of the band.

    Loading takes more than running here: a tensor is first copied in float32, and experts are
    merged (Mixtral: 194 MB where the best estimate is 137 and the upper end 355).
    """
    import torch

    whole = bench.plan(host(8 * GIB))
    capacity = whole.devices[0].total_bytes - bench.spec.weight_bytes // 3
    plan = bench.plan(host(capacity), disk())
    assert plan.verdict.fits
    assert set(plan.placement.device_map.values()) == {"cpu", "disk"}
    on_host, on_disk = plan.devices
    most = on_host.high_bytes
    code, peak, logits = bench.run(plan.placement.device_map, limit=most, name="half")
    assert code == 0, peak
    assert torch.equal(logits, bench.expected())
    print(f"{bench.spec.model_type}: {on_host.low_bytes} {peak} {on_host.high_bytes}, limit {most}")
    assert on_host.low_bytes - MIB <= peak <= on_host.high_bytes  # the interpreter was there before
    written = sum(f.stat().st_size for f in bench.folder.glob("offload-half/*.safetensors"))
    assert on_disk.parts.get("weights", 0) == pytest.approx(written, rel=0.01, abs=4096)


def test_what_does_not_fit_by_the_plan_fails_in_earnest(bench):
    """No disk, and a tenth less memory than the best estimate: the process does not survive."""
    whole = bench.plan(host(8 * GIB))
    capacity = int(0.9 * (whole.devices[0].total_bytes - MIB))
    plan = bench.plan(host(capacity))
    assert not plan.verdict.fits
    code, said, _ = bench.run(plan.placement.device_map, limit=capacity, name="tight")
    assert code == -signal.SIGKILL or "memory" in said.lower()


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
