"""Peaks of real FSDP2 steps over gloo, for tests/parallel/test_peaks.py.

    python fsdp_peak_worker.py FOLDER RANKS

FOLDER holds config.json. Each process takes steps under every set-up of `CASES` and writes to
FOLDER/RANK.json how much more is resident in the passes and in the optimizer's step than between
steps, where weights and states alone are there: VmHWM, reset before each. glibc is told to give
back what is freed (MALLOC), so that resident is what is alive.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import parallel_worker

CASES = {
    "root": {"groups": (), "seq": 16},
    "groups": {"groups": ("model.embed_tokens", "lm_head"), "seq": 16},
    "long": {"groups": ("model.embed_tokens", "lm_head"), "seq": 512},
    "mixed": {"groups": ("model.embed_tokens", "lm_head"), "seq": 16, "mixed": True},
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return found


def highest(action):
    """Return the most that was resident during an action."""
    Path("/proc/self/clear_refs").write_text("5")
    action()
    return status("VmHWM")


def measured(folder, mesh, *, groups, seq, mixed=False):
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoConfig, LlamaForCausalLM

    model = LlamaForCausalLM(AutoConfig.from_pretrained(folder))
    policy = {}
    if mixed:
        kinds = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
        policy = {"mp_policy": MixedPrecisionPolicy(**kinds)}
    for part in (*model.model.layers, *map(model.get_submodule, groups), model):
        fully_shard(part, mesh=mesh, **policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(seq).reshape(1, seq) % model.config.vocab_size

    def passes():
        model(input_ids=tokens, labels=tokens).loss.backward()

    passes()
    optimizer.step()
    sizes = parallel_worker.held(model, optimizer)["stored"]
    found = {"passes": 0, "step": 0, **sizes}
    for _ in range(2):  # the first makes what stays: states, buffers of libraries
        optimizer.zero_grad()
        gc.collect()
        base = status("VmRSS")
        found["passes"] = highest(passes) - base
        found["step"] = highest(optimizer.step) - base
    return found


def main(rank, ranks, folder):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/g", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    found = {name: measured(folder, mesh, **case) for name, case in CASES.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    if not MALLOC.items() <= os.environ.items():
        sys.exit(f"{MALLOC} must be in the environment")
    parallel_worker.start(main, int(sys.argv[2]), sys.argv[1])
