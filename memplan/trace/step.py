"""What runs under the tracker: training steps, or a prompt and a few tokens."""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from memplan.errors import UnsupportedModelError
from memplan.footprint.optimizer import split_name
from memplan.trace.build import build
from memplan.trace.fake import fake_mode
from memplan.trace.job import Job
from memplan.trace.kernels import scratch_bytes
from memplan.trace.loss import chunked_loss, loss_of
from memplan.trace.memo import Memo
from memplan.trace.optimizers import (
    make_optimizer,
    paged_tensors,
    state_tensors,
    step_in_backward,
    take_step,
)
from memplan.trace.patches import target_kernels
from memplan.trace.record import PAGED
from memplan.trace.tracker import Tracker
from memplan.types import Workload

__all__ = ["EVALUATION", "record"]

STEPS = 2
"""Optimizer steps: the first has no states beside its activations."""
MICRO_STEPS = 2
"""Micro-batches of one step that are traced: the second has gradients beside its activations."""
EVALUATION = "evaluation"
"""Phase between two steps: a batch without gradients."""
END = "end"
"""Phase after the last token: what is alive then is the cache."""
DECODED = 2
"""Tokens generated after a prompt: the first ends what only the prompt's pass keeps."""


def record(job: Job, *, hold_outputs: bool = False) -> Tracker:
    """Run a job on fake tensors and return what was seen.

    Args:
        job: what runs.
        hold_outputs: the caller's loop keeps the model's outputs until the backward pass ends.

    Raises what `memplan.trace.build.build` raises, UnsupportedModelError for inputs that are no
    tokens, and whatever the model's own code raises.
    """
    import torch

    tracker = Tracker()
    # Storages of one trace must not be taken for those of another: the garbage is collected first.
    mode = fake_mode()
    model = build(job, mode)
    tracker.recording.begin("load")
    tracker.add(model.parameters(), "weights")
    tracker.add(model.buffers(), "buffers")
    hidden = scratch_bytes(job.target, torch.get_num_threads())
    run = Memo(mode).run
    with (
        _old_objects_left_alone(),
        target_kernels(job.target, tracker),
        mode,
        tracker.watching(model, hidden, run),
    ):
        if job.workload.task == "train":
            _train(torch, model, job, tracker, hold_outputs=hold_outputs)
        else:
            _infer(torch, model, job.workload, tracker)
    return tracker


@contextlib.contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Let the garbage collector look at what is new only: the rest is torch, and takes a quarter.

    A program that has frozen objects of its own keeps them as they are.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _train(torch: Any, model: Any, job: Job, tracker: Tracker, *, hold_outputs: bool) -> None:
    work = job.workload
    assert work.optimizer is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda p: tracker.label([p.grad], "gradients") if p.grad is not None else None
        )
    make = step_in_backward if split_name(work.optimizer)[1] else make_optimizer
    optimizer = make(work.optimizer, model, target=job.target.kind)
    inputs = _inputs(torch, model, work)
    tracker.add(_tensors_in(inputs), "inputs")
    wanted = min(work.grad_accum or 1, MICRO_STEPS)
    for step in range(1, STEPS + 1):
        for micro in range(1, wanted + 1):
            name = f"{step}.{micro}" if wanted > 1 else f"{step}"
            tracker.recording.begin(f"forward {name}")
            loss, outputs = _forward(torch, model, inputs, work)
            if not hold_outputs:
                outputs = None
            tracker.recording.begin(f"backward {name}")
            loss.backward()
            del loss, outputs
        tracker.recording.begin(f"step {step}")
        take_step(optimizer)
        tracker.label(state_tensors(optimizer), "optimizer")
        tracker.label(paged_tensors(work.optimizer, optimizer), PAGED)
        optimizer.zero_grad()
    if work.eval_batch:
        _evaluate(torch, model, work, tracker)


def _evaluate(torch: Any, model: Any, work: Workload, tracker: Tracker) -> None:
    """Run one batch of an evaluation, as Trainer does where only the loss is asked for.

    Between two steps: no gradient is alive, all states are.
    """
    inputs = _inputs(torch, model, work, batch=work.eval_batch)
    tracker.recording.begin(EVALUATION)
    tracker.add(_tensors_in(inputs), "inputs")
    model.eval()
    with torch.no_grad():
        _forward(torch, model, inputs, work)


def _forward(torch: Any, model: Any, inputs: dict[str, Any], work: Workload) -> tuple[Any, Any]:
    with _precision(torch, work):
        if work.loss == "chunked":
            return chunked_loss(model, inputs), None
        outputs = model(**inputs)
        loss = loss_of(outputs, inputs)
    if (work.grad_accum or 1) > 1:
        loss = loss / work.grad_accum
    return loss, outputs


def _precision(torch: Any, work: Workload) -> Any:
    names = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
    dtype = names.get(work.precision or "")
    return torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()


def _inputs(torch: Any, model: Any, work: Workload, *, batch: int | None = None) -> dict[str, Any]:
    """Return a batch of tokens as a collator makes it, with labels where the model takes them."""
    assert work.seq is not None
    batch = batch or work.batch
    inputs = _tokens(torch, model, batch, work.seq)
    if work.data == "padded":
        inputs["attention_mask"] = torch.ones(batch, work.seq, dtype=torch.long)
    takes = _parameters(model)
    if "labels" in takes:
        whole = "ForSequenceClassification" in type(_plain(model)).__name__
        inputs["labels"] = (
            torch.zeros(batch, dtype=torch.long)
            if whole
            else (torch.zeros(batch, work.seq, dtype=torch.long))
        )
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


def _tokens(torch: Any, model: Any, batch: int, length: int) -> dict[str, Any]:
    plain = _plain(model)
    if getattr(plain, "main_input_name", "input_ids") != "input_ids":
        raise UnsupportedModelError(
            f"{type(plain).__name__} takes {plain.main_input_name}, no tokens: it is not traced",
            hint="--estimator formula",
        )
    return {_first(model): torch.zeros(batch, length, dtype=torch.long)}


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _first(model: Any) -> str:
    """Return what forward calls the tokens: "input_ids", or else its first argument."""
    takes = _parameters(model)
    return "input_ids" if "input_ids" in takes or not takes else takes[0]


def _parameters(model: Any) -> list[str]:
    """Return the names of what forward takes, in order."""
    found = inspect.signature(_plain(model).forward).parameters.values()
    return [x.name for x in found if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]


def _infer(torch: Any, model: Any, work: Workload, tracker: Tracker) -> None:
    """Run the prompt in its chunks, then a few tokens, as generate does."""
    assert work.context is not None
    takes = _parameters(model)
    last = {"logits_to_keep": 1} if work.logits != "full" and "logits_to_keep" in takes else {}
    chunk = min(work.prefill_chunk or work.context, work.context)
    cache: Any = {}
    with torch.no_grad():
        done = 0
        for name, length in _passes(work.context, chunk):
            if not tracker.recording.marks or tracker.recording.phase != name:
                tracker.recording.begin(name)
            tokens = _tokens(torch, model, work.batch, length)
            tracker.add(tokens.values(), "inputs")
            outputs = model(**tokens, **cache, **last, use_cache=True)
            done += length
            key, value = _cache_of(outputs)
            cache = {key: value} if key else {}
            tracker.label(_tensors_in(value), "kv_cache")
            del outputs, tokens
        tracker.recording.begin(END)


def _passes(context: int, chunk: int) -> Iterator[tuple[str, int]]:
    left = context - DECODED if context > DECODED else context
    while left:
        yield "prefill", min(chunk, left)
        left -= min(chunk, left)
    if context > DECODED:
        yield from (("decode", 1),) * DECODED


def _cache_of(outputs: Any) -> tuple[str | None, Any]:
    for name in ("past_key_values", "cache_params", "state", "mems"):
        value = getattr(outputs, name, None)
        if value is not None:
            return name, value
    return None, None


def _tensors_in(value: Any) -> list[Any]:
    """Return every tensor that a cache holds."""
    import torch

    found: list[Any] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif hasattr(item, "__dict__") and not isinstance(item, type | Callable):
            waiting += vars(item).values()
    return found
