"""One DeepSpeed step in several processes, for tests/footprint/test_parallel.py.

    python deepspeed_worker.py FOLDER RANKS STAGE DTYPE

The model is parallel_worker's; each process writes what DeepSpeed holds to FOLDER/RANK.json, bytes
of storages, each once. Needs deepspeed, which runs on CPU over gloo.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import parallel_worker


def bytes_of(tensors):
    return parallel_worker.stored([t for t in tensors if t is not None and t.numel()])


def held(engine, stage):
    zero = engine.optimizer
    values = [v for state in zero.optimizer.state.values() for v in state.values()]
    states = bytes_of(v for v in values if hasattr(v, "numel"))
    if stage < 3:
        masters = zero.single_partition_of_fp32_groups
        return {
            "weights": bytes_of(zero.bit16_groups_flat),
            "optimizer": bytes_of(masters) + states,
        }
    weights = bytes_of([zero.lp_param_buffer])
    both = bytes_of([zero.lp_param_buffer, *zero.fp32_partitioned_groups_flat])
    kept = [p.data for p in engine.module.parameters() if p.ds_persist]
    buckets = [bucket.buffer for bucket in zero.ipg_buckets.values()]
    return {
        "weights": weights,
        "optimizer": both - weights + states,
        "persistent": bytes_of(kept),
        "bucket": bytes_of(buckets),
    }


def step(rank, ranks, folder, stage, dtype):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu")
    import deepspeed
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/g", rank=rank, world_size=ranks)
    model = parallel_worker.build()
    zero = {
        "stage": stage,
        "reduce_bucket_size": 100_000,
        "stage3_param_persistence_threshold": 5_000,
    }
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
    }
    engine, zero, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config=config,
        dist_init_required=False,
    )
    tokens = torch.arange(16).reshape(2, 8)
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    if stage < 3:
        gradients = [t for group in zero.averaged_gradients.values() for t in group]
        gradients += [p.grad for p in model.parameters()]
    else:
        gradients = [zero.grad_partitions_flat_buffer]
    found = {"gradients": bytes_of(gradients)}
    engine.step()
    found |= held(engine, stage)
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    where, count, level, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.multiprocessing.spawn(step, (count, where, level, kind), count)
