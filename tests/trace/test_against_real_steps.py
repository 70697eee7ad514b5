"""The trace against the real thing: the same step with real tensors, every allocation counted.

torch.profiler's memory events are exact; each case must agree within 0.01 % (4096 tokens of
inference: 0.1 %). What differs are kernels' own scratch buffers, which no dispatcher sees.
"""

from __future__ import annotations

import dataclasses

import pytest

from memplan.trace.job import Job
from memplan.trace.kernels import Target
from memplan.types import Workload

pytestmark = [
    pytest.mark.models,
    # PEFT calls transformers by names that are about to go.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
}
MIXTRAL = {
    **LLAMA,
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
GEMMA3 = {
    **LLAMA,
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 64,
    "sliding_window": 96,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LORA = {
    "method": "lora",
    "lora_rank": 8,
    "lora_targets": "q_proj,v_proj",
    "lora_dtype": "float32",
}
CASES = {
    "full": (LLAMA, {}),
    "full in float32": (LLAMA, {"dtype": "float32", "precision": "fp32"}),
    "eager attention": (LLAMA, {"attention": "eager"}),
    "checkpointing": (LLAMA, {"checkpointing": "full"}),
    "selective checkpointing": (LLAMA, {"checkpointing": "selective"}),
    "LoRA": (LLAMA, LORA),
    "LoRA with dropout": (LLAMA, {**LORA, "lora_dropout": 0.1}),
    "LoRA of all linears, checkpointed": (
        LLAMA,
        {**LORA, "lora_targets": "all-linear", "checkpointing": "full"},
    ),
    "DoRA": (LLAMA, {**LORA, "method": "dora"}),
    "accumulation": (LLAMA, {"grad_accum": 3}),
    "padding mask": (LLAMA, {"data": "padded"}),
    "mixture of experts": (MIXTRAL, {}),
    "Gemma 3": (GEMMA3, {}),
    "evaluation": (LLAMA, {"batch": 1, "eval_batch": 16}),
    "evaluation of adapters with dropout": (
        LLAMA,
        {**LORA, "lora_dropout": 0.1, "batch": 1, "eval_batch": 16},
    ),
    "SGD": (LLAMA, {"optimizer": "sgd"}),
    "optimizer in backward": (LLAMA, {"optimizer": "adamw-in-backward"}),
    "mixed precision": (LLAMA, {"dtype": "float32", "precision": "bf16-mixed"}),
}


def job_of(config, **options):
    import json

    given = {
        "task": "train",
        "dtype": "bfloat16",
        "method": "full",
        "optimizer": "adamw",
        "seq": 128,
        "batch": 2,
        "grad_accum": 1,
        "checkpointing": "none",
        "precision": "bf16",
        "loss": "full-logits",
        "data": "packed",
        **options,
    }
    target = Target(kind="cpu", padded=given["data"] == "padded")
    return Job(config=json.dumps(config), workload=Workload(**given), target=target)


def step_in_backward(parameters):
    """Hang an optimizer of its own on each parameter; what is left for the end is nothing."""
    import torch

    own = {p: torch.optim.AdamW([p], lr=1e-4, foreach=False) for p in parameters}

    def update(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(update)
    return torch.optim.SGD([torch.zeros(1)])


def batch_of(sequences, length):
    """Tokens with labels."""
    import torch

    ids = torch.zeros(sequences, length, dtype=torch.long)
    return {"input_ids": ids, "labels": torch.zeros_like(ids), "use_cache": False}


def real_peak(job):
    """Return the exact peak of a plain loop over real tensors, in bytes."""
    import contextlib

    import peft
    import torch
    import transformers
    from torch.utils.checkpoint import CheckpointPolicy  # noqa: F401 - needed by the step

    from memplan.measure.exact import MemoryTrace
    from memplan.trace import build as parts

    work = job.workload
    config = transformers.AutoConfig.for_model(**__import__("json").loads(job.config))
    eager = "eager" if work.attention == "eager" else None
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, work.dtype), attn_implementation=eager
    ).train()
    if work.method != "full":
        targets = work.lora_targets
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=work.lora_rank,
                target_modules=targets if targets == "all-linear" else targets.split(","),
                lora_dropout=work.lora_dropout or 0.0,
                use_dora=work.method == "dora",
            ),
        )
    if work.checkpointing != "none":
        settings = {"use_reentrant": False}
        if work.checkpointing == "selective":
            settings["context_fn"] = parts._contexts
        model.activation_checkpointing_enable(settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    if work.optimizer in kinds:
        optimizer = kinds[work.optimizer](trained, lr=1e-4, foreach=False)
    else:
        optimizer = step_in_backward(trained)
    tensors = (*model.parameters(), *model.buffers())
    base = sum(s.nbytes() for s in {t.data_ptr(): t.untyped_storage() for t in tensors}.values())
    trace = MemoryTrace(torch)
    trace.start()
    inputs = batch_of(work.batch, work.seq)
    ids = inputs["input_ids"]
    if work.data == "padded":
        mask = torch.ones_like(ids)
        mask[0, 0] = 0
        inputs["attention_mask"] = mask
    mixed = work.precision == "bf16-mixed"
    for _ in range(2):
        for _ in range(work.grad_accum):
            with torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext():
                loss = model(**inputs).loss
            if work.grad_accum > 1:
                loss = loss / work.grad_accum
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()
    if work.eval_batch:
        evaluated = batch_of(work.eval_batch, work.seq)
        with torch.no_grad():
            model.eval()(**evaluated)
    return base + trace.stop()["cpu.peak_allocated"]


@pytest.mark.parametrize("name", CASES)
def test_the_traced_peak_of_training_is_the_real_one(name):
    """Within 0.01 %."""
    from memplan.trace.step import record

    config, options = CASES[name]
    job = job_of(config, **options)
    traced = record(job).recording.peak()[0]
    assert traced == pytest.approx(real_peak(job), rel=1e-4)


def test_steps_within_backward_keep_no_gradients():
    """The peak is lower by most of them, and the largest is all that is alive at once."""
    from memplan.trace.run import record_job, summarise

    usual, early = (
        summarise(record_job(job_of(LLAMA, optimizer=name)), gpu=False)
        for name in ("adamw", "adamw-in-backward")
    )
    assert early.optimizer_bytes == usual.optimizer_bytes
    assert early.gradients_bytes == 2 * 1000 * 128
    assert usual.gradients_bytes == usual.weights_bytes
    steps = [p.peak_bytes for t in (usual, early) for p in t.phases if p.name == "step 2"]
    assert steps[0] - steps[1] >= usual.gradients_bytes - early.gradients_bytes


def test_the_peak_of_a_large_evaluation_is_named():
    """It decides where its batch is large, and changes nothing where it is small."""
    from memplan.trace.run import record_job, summarise

    plain, small, large = (
        summarise(record_job(job_of(LLAMA, batch=2, eval_batch=size)), gpu=False)
        for size in (None, 1, 32)
    )
    assert plain.peak_phase == small.peak_phase != "evaluation"
    assert plain.peak_bytes == small.peak_bytes
    assert large.peak_phase == "evaluation"


@pytest.mark.parametrize("chunk", [None, 1024])
def test_the_traced_peak_of_4096_tokens_is_the_real_one(chunk):
    """A prompt in one pass or in four, then two tokens; within 0.1 %."""
    import torch
    import transformers

    from memplan.measure.exact import MemoryTrace
    from memplan.trace.step import record

    job = job_of(LLAMA)
    work = Workload(context=4098, batch=1, prefill_chunk=chunk, attention="sdpa")
    traced = record(dataclasses.replace(job, workload=work)).recording.peak()[0]
    config = transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    base = sum(t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers()))
    trace = MemoryTrace(torch)
    trace.start()
    cache = None
    with torch.no_grad():
        for length in (*([chunk] * (4096 // chunk) if chunk else [4096]), 1, 1):
            ids = torch.zeros(1, length, dtype=torch.long)
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            del output, ids
    assert traced == pytest.approx(base + trace.stop()["cpu.peak_allocated"], rel=1e-3)
