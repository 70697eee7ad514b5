"""What a draft model, or a model's own guessing layers, take beside it."""

from __future__ import annotations

from dataclasses import replace

from memplan.errors import UnsupportedModelError, UsageError
from memplan.footprint.defaults import compute_dtype
from memplan.footprint.lines import band_line, exact_line
from memplan.runtimes import runtime
from memplan.types import Line, ModelSpec, Workload

__all__ = ["MTP", "draft_lines"]

MTP = "mtp"
"""--draft with the model's own layers."""

_SHARED = ("embed_tokens", "shared_head.head", "lm_head")


def draft_lines(
    spec: ModelSpec, workload: Workload, draft: ModelSpec | None = None
) -> tuple[Line, ...]:
    """Return the lines of what drafts tokens: weights, cache at the target's context and batch.

    A draft model computes before its target, so of its activations counts what exceeds the
    target's; llama.cpp keeps a compute buffer for each of the two. Source: transformers 5.23
    generation/candidate_generator.py, llama.cpp common/speculative.cpp, vLLM 0.33
    v1/spec_decode; not measured on a GPU.

    Args:
        spec: the target.
        workload: its workload; "draft" says what drafts.
        draft: the draft model, where it is one.

    Raises UsageError and UnsupportedModelError where an engine cannot draft so.
    """
    if workload.draft is None or workload.task != "infer":
        return ()
    if workload.runtime == "transformers" and any(layer.states for layer in spec.layers):
        raise UnsupportedModelError(
            f"transformers cannot take tokens back from the states of {spec.name}",
            hint="leave --draft out, or use --runtime vllm or llama.cpp",
        )
    if workload.draft == MTP:
        return _own_layers(spec, workload)
    if draft is None:
        raise UsageError(f"the draft model {workload.draft} was not read", hint="name its folder")
    return _model(spec, workload, draft)


def _model(spec: ModelSpec, workload: Workload, draft: ModelSpec) -> tuple[Line, ...]:
    if not draft.layers:
        raise UnsupportedModelError(
            f"{draft.name}: nothing says how many layers and heads this draft model has",
            hint="put its config.json beside the weights",
        )
    engine = runtime(workload.runtime)
    same = workload.kv_dtype == workload.dtype
    dtype = compute_dtype(draft)
    own = replace(
        workload,
        dtype=dtype,
        kv_dtype=dtype if same else workload.kv_dtype,
        quant="none",
        draft=None,
        draft_tokens=None,
        images=None,
        image_size=None,
    )
    weights = exact_line("weights", draft.weight_bytes, f"{draft.origin or draft.source}")
    pass_line: Line = engine.activation_line(draft, own)
    if workload.runtime != "llama.cpp":
        target: Line = engine.activation_line(spec, workload)
        pass_line = band_line(
            "activations",
            max(pass_line.bytes - target.bytes, 0),
            low=0,
            high=max(pass_line.high_bytes - target.bytes, 0),
            source=f"what it needs beyond the target: {pass_line.source}",
        )
    lines = (weights, *engine.cache_lines(draft, own), pass_line)
    return tuple(replace(line, source=f"draft {draft.name}: {line.source}") for line in lines)


def _own_layers(spec: ModelSpec, workload: Workload) -> tuple[Line, ...]:
    """Return the guessing layers: tensors of the file, and a cache like the last layer's.

    Each is a decoder layer with full attention. Their embedding and output matrix may be the
    model's own, which the engine then keeps once: that is the lower end.
    """
    if workload.runtime != "vllm":
        raise UsageError(
            f"{workload.runtime} does not load a model's own draft layers",
            hint="use --runtime vllm, or --draft MODEL",
        )
    if not spec.mtp:
        raise UsageError(
            f"{spec.name} shows no layers that draft (mtp)",
            hint="name the folder with its safetensors files, or --draft MODEL",
        )
    size = sum(tensor.bytes for tensor in spec.mtp)
    shared = sum(t.bytes for t in spec.mtp if any(name in t.name for name in _SHARED))
    count = spec.mtp_layers
    engine = runtime(workload.runtime)
    caching = [layer for layer in spec.layers if not layer.states and layer.kv_heads]
    each = engine.layer_cache_bytes(spec, caching[-1], workload) if caching else 0
    weights = band_line(
        "weights",
        size,
        low=size - shared,
        high=size,
        source=f"draft mtp: {len(spec.mtp)} tensors of the file, {count} layer(s)",
    )
    cache = exact_line("kv_cache", count * each, f"draft mtp: {count} layer(s)")
    return (weights, cache) if cache.bytes else (weights,)
