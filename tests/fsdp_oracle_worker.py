"""What torch's own tracker says FSDP2 takes on one rank of a large job, without its memory.

    python fsdp_oracle_worker.py RANKS CONFIG.json [MODULE ...]

Builds the model on fake tensors, its collectives do nothing ("fake" process group). Decoder layers,
the named modules and the root become FSDP modules. Prints JSON: bytes of weights and optimizer
states that the rank keeps, and of all else at the peak: gathered weights, full gradients,
collectives' buffers, and four tokens' activations. The tracker takes some buffers for activations,
so its kinds are not told apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def tracked(ranks, config, modules):
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import LlamaConfig, LlamaForCausalLM

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    with FakeTensorMode():
        model = LlamaForCausalLM(LlamaConfig(**config))
        for part in (*model.model.layers, *map(model.get_submodule, modules)):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        tokens = torch.zeros(1, 4, dtype=torch.long)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()  # outside: its sharding propagation would count as states
        model.zero_grad()
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((tokens,))
        with tracker:
            model(input_ids=tokens, labels=tokens).loss.backward()
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    sizes = {getattr(kind, "name", kind): size for kind, size in snapshot.items()}
    kept = ("SHARDED_PARAM", "SHARDED_GRAD", "OPT", "BUFFER", "INP")
    dist.destroy_process_group()
    return {
        "weights": sizes["SHARDED_PARAM"],
        "optimizer": sizes["OPT"],
        "gathered": sizes["Total"] - sum(sizes[name] for name in kept),
    }


if __name__ == "__main__":
    ranks, config, *names = sys.argv[1:]
    print(json.dumps(tracked(int(ranks), json.loads(Path(config).read_text()), names)))
