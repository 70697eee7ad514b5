"""Real training steps in several processes, for tests/footprint/test_parallel.py.

    python parallel_worker.py FOLDER RANKS

Each process takes one AdamW step of a small Llama under every set-up and writes what torch then
holds to FOLDER/RANK.json: bytes of storages, each once, and bytes of the tensors that view them.
FOLDER/gathered.json says what FSDP2 gathers at most.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

CONFIG = {
    "hidden_size": 96,
    "intermediate_size": 250,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": 1003,
    "tie_word_embeddings": False,
}
WIDE = {"hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 6}
FROZEN = "model.layers.1."


def local(tensor):
    return getattr(tensor, "_local_tensor", tensor)


def views(tensors):
    return sum(local(t).numel() * local(t).element_size() for t in tensors)


def stored(tensors):
    storages = [local(t).untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}.values())


def held(model, optimizer):
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = [v for s in optimizer.state.values() for v in s.values() if hasattr(v, "numel")]
    rows = {"weights": parameters, "gradients": gradients, "optimizer": states}
    return {
        "stored": {name: stored(tensors) for name, tensors in rows.items()},
        "views": {name: views(tensors) for name, tensors in rows.items()},
    }


def build(dtype="float32", **changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(CONFIG | changes))).to(getattr(torch, dtype))


def step(model):
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.arange(16).reshape(2, 8)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


def ddp(model, **options):
    """Return what is held after two steps, and each bucket's storage in the second."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model, **options)
    buckets = {}

    def hook(_, bucket):
        buckets[bucket.index()] = bucket.buffer().untyped_storage()
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    future = torch.futures.Future[torch.Tensor]
    hook.__annotations__ = {"bucket": dist.GradBucket, "return": future}
    wrapped.register_comm_hook(None, hook)
    step(wrapped)
    buckets.clear()
    model.zero_grad()
    optimizer = step(wrapped)
    sizes = [buckets[i].nbytes() for i in sorted(buckets)]
    own = {s.data_ptr() for s in buckets.values()}
    seen = {p.grad.untyped_storage().data_ptr() in own for p in model.parameters()}
    return held(model, optimizer) | {"buckets": sizes, "gradients are views": seen == {True}}


def fsdp(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return held(model, step(model))


def tracked(mesh, **options):
    """Return the highest sum of gathered weights, full gradients and collectives' buffers.

    torch's own tracker; "temporary" holds the weights' full gradients and those of activations,
    which a few tokens keep small. The second pass counts, with the optimizer's states beside it:
    in the first one the tracker takes weights that have just been gathered for activations.
    """
    import torch
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.fsdp import fully_shard

    model = build(**WIDE)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters())
    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs((tokens,))
    with tracker:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        model.zero_grad()
        tracker.reset_mod_stats()
        model(input_ids=tokens, labels=tokens).loss.backward()
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    sizes = {getattr(kind, "name", kind): size for kind, size in snapshot.items()}
    names = ("UNSHARDED_PARAM", "UNSHARDED_GRAD", "ALL_GATHER", "REDUCE_SCATTER", "TEMP")
    return sum(sizes[name] for name in names)


def frozen(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(FROZEN)
    return model


def loaded(folder, **degrees):
    """Return a model that transformers divided itself."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(**degrees)
    return LlamaForCausalLM.from_pretrained(folder, distributed_config=config)


def everything(rank, ranks, folder):
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/g", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = {
        "ddp": ddp(build()),
        "ddp small buckets": ddp(build(), bucket_cap_mb=1),
        "ddp views": ddp(build(), gradient_as_bucket_view=True),
        "fsdp": fsdp(build(), mesh),
        "fsdp bf16": fsdp(build("bfloat16"), mesh),
        "fsdp frozen": fsdp(frozen(build()), mesh),
        "fsdp tied": fsdp(build(tie_word_embeddings=True), mesh),
        "fsdp mixed": fsdp(build(), mesh, mp_policy=mixed),
        "fsdp kept": fsdp(build(), mesh, reshard_after_forward=False),
        "fsdp offload": fsdp(build(), mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    }
    model = loaded(folder, tp_size=ranks, tp_plan="auto")
    found["tp"] = held(model, step(model))
    if ranks == 4:
        model = loaded(folder, tp_size=2, tp_plan="auto", fsdp_size=2)
        found["tp fsdp"] = held(model, step(model))
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def gathered(ranks, folder):
    """Track one rank of a job whose collectives do nothing, so that no thread holds a buffer."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    found = {"resharded": tracked(mesh), "kept": tracked(mesh, reshard_after_forward=False)}
    Path(folder, "gathered.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def start(main, ranks, *given):
    """Run main(rank, ranks, *given) in a process for each rank and wait for all.

    They are forked off after the imports, which take longer than the steps. No operator may have
    run on several threads before: those would be missing in the children.
    """
    import torch.distributed.fsdp
    import torch.multiprocessing
    from transformers import LlamaForCausalLM  # noqa: F401 - so that no rank imports it anew

    gc.freeze()  # a rank that collects garbage looks at its own
    torch.multiprocessing.start_processes(main, (ranks, *given), ranks, start_method="fork")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    where, count = sys.argv[1], int(sys.argv[2])
    build().save_pretrained(where)
    start(everything, count, where)
    gathered(count, where)
