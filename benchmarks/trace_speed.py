"""The trace of a training step beside torch's own MemTracker, on the same fake model in one run.

    python benchmarks/trace_speed.py [--large]

TinyLlama-1.1B, 4 sequences of 512 tokens, bfloat16, two steps of AdamW. MemTracker
(torch.distributed._tools.mem_tracker) watches the same loop over the same kind of tensors. Then a
LoRA step of Llama-8B, and with --large a 116 B model. xMem publishes 568 to 1513 s for models of
1.5 to 4 B parameters.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from memplan.trace.build import build
from memplan.trace.fake import fake_mode
from memplan.trace.job import Job
from memplan.trace.kernels import Target
from memplan.trace.optimizers import make_optimizer
from memplan.trace.patches import target_kernels
from memplan.trace.run import record_job
from memplan.types import Workload
from memplan.units import format_bytes

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
EIGHT = {
    **TINY,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LARGE = {
    **EIGHT,
    "hidden_size": 12288,
    "intermediate_size": 33792,
    "num_hidden_layers": 72,
    "num_attention_heads": 96,
}


def job(config: dict[str, Any], **options: Any) -> Job:
    """Return a training job on the host's kernels."""
    work = {
        "task": "train",
        "dtype": "bfloat16",
        "method": "full",
        "optimizer": "adamw",
        "seq": 512,
        "batch": 4,
        "grad_accum": 1,
        "checkpointing": "none",
        "precision": "bf16",
        "loss": "full-logits",
        "data": "packed",
        **options,
    }
    return Job(config=json.dumps(config), workload=Workload(**work), target=Target(kind="cpu"))


def with_mem_tracker(wanted: Job) -> int:
    """Run the same two steps under MemTracker and return its peak in bytes."""
    work = wanted.workload
    mode = fake_mode()
    model = build(wanted, mode)
    with target_kernels(wanted.target), mode:
        optimizer = make_optimizer("adamw", model, target="cpu")
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        ids = torch.zeros(work.batch, work.seq or 1, dtype=torch.long)
        with tracker:
            for step in range(2):
                loss = model(input_ids=ids, labels=ids, use_cache=False)["loss"]
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
    peaks = tracker.get_tracker_snapshot("peak")
    return int(next(iter(peaks.values()))["Total"])


def timed(function: Any, *args: Any) -> tuple[float, Any]:
    """Return seconds and result."""
    begin = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - begin, result


def main() -> None:
    """Print the comparison."""
    warnings.simplefilter("ignore")
    tiny = job(TINY)
    record_job(job({**TINY, "num_hidden_layers": 1}))  # imports are no part of it
    own, recording = timed(record_job, tiny)
    peak = recording.peak()[0]
    other, theirs = timed(with_mem_tracker, tiny)
    print("TinyLlama-1.1B, batch 4, 512 tokens, two steps")
    print(f"  memplan     {own:6.1f} s   peak {format_bytes(peak)}")
    print(f"  MemTracker  {other:6.1f} s   peak {format_bytes(theirs)}")
    print(f"  {other / own:.1f} times as fast, peaks {100 * (peak / theirs - 1):+.3f} % apart")
    lora = {"method": "lora", "lora_rank": 16, "lora_targets": "all-linear", "batch": 1}
    seconds, _ = timed(record_job, job(EIGHT, **lora, lora_dtype="float32"))
    print(f"Llama-8B, LoRA of all linears, 512 tokens   {seconds:6.1f} s")
    if "--large" in sys.argv:
        seconds, recording = timed(record_job, job(LARGE, batch=1))
        weights = sum(x.size for x in recording.blocks if x.label == "weights")
        print(f"{weights / 2e9:.0f} B parameters, full, 512 tokens      {seconds:6.1f} s")


if __name__ == "__main__":
    main()
