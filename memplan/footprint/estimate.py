"""ModelSpec + Workload -> Footprint: what is alive at the peak, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from memplan.errors import UnsupportedModelError
from memplan.footprint.compiled import compiled
from memplan.footprint.defaults import ADAPTER_METHODS
from memplan.footprint.lines import band_line, exact_line
from memplan.footprint.optimizer import (
    PAGED,
    gradient_bytes,
    optimizer_bytes,
    optimizer_rule,
    paged_bytes,
)
from memplan.footprint.overhead import Cost
from memplan.footprint.tower import with_images
from memplan.runtimes import runtime, trainer
from memplan.types import Footprint, Line, ModelSpec, Tensor, Workload
from memplan.units import MIB

__all__ = ["estimate", "trained_tensors"]


def estimate(
    spec: ModelSpec,
    workload: Workload,
    *,
    kind: Literal["gpu", "cpu"] = "gpu",
    baseline: int | None = None,
    costs: Sequence[Cost] = (),
    beside: Sequence[Line] = (),
) -> Footprint:
    """Return what a workload needs at its peak on one device that holds everything.

    Args:
        spec: the model in the dtype that it is loaded in.
        workload: complete, as `memplan.footprint.defaults.complete` returns it.
        kind: "gpu", or "cpu" when the host itself computes; it decides the fixed overhead.
        baseline: measured RSS of the interpreter in bytes, if known.
        costs: what the GPU's context and libraries take, if known.
        beside: lines of what else runs there (`memplan.footprint.draft`).

    Without layers (a module without a config) the lines are those that need none: a trace adds
    the activations.

    Raises UnsupportedModelError when the model's shapes are unknown or a layer has no rule.
    """
    _check_shapes(spec, workload)
    engine = runtime(workload.runtime)
    spec = with_images(spec, workload)
    lines = [_weights(spec), *_buffers(spec, workload)]
    if workload.task == "infer":
        lines += engine.cache_lines(spec, workload)
        lines.append(engine.activation_line(spec, workload))
    else:
        lines += _training(spec, workload, kind)
    lines += beside
    return Footprint(lines=(*lines, engine.overhead_line(kind, baseline, costs)))


def _check_shapes(spec: ModelSpec, workload: Workload) -> None:
    """Refuse a model without known layers, except where a trace of its own code says the rest."""
    if spec.layers:
        return
    if spec.source != "module":
        raise UnsupportedModelError(
            f"{spec.name}: nothing says how many layers and heads this model has",
            hint="put its config.json beside the weights",
        )
    if workload.task != "train" or workload.estimator != "trace":
        raise UnsupportedModelError(
            f"{spec.name} has no config, so only a trace of its training can be planned",
            hint="--task train --estimator trace, or give the model a transformers config",
        )


def _weights(spec: ModelSpec) -> Line:
    origin = spec.origin or spec.source
    return exact_line("weights", spec.weight_bytes, f"{origin}, {spec.dtype}")


def _buffers(spec: ModelSpec, workload: Workload) -> list[Line]:
    """Return the module buffers, and the low-precision copies that autocast keeps.

    Autocast casts each matrix once and keeps the copy until the backward pass ends: up to 2 bytes
    for every parameter (torch/amp, weight cache).
    """
    lines = []
    if workload.runtime == "llama.cpp":
        return []  # rotary frequencies are computed where they are used
    if spec.exact_modules:
        lines.append(exact_line("buffers", spec.buffer_bytes, "buffers of the built model"))
    else:
        inverse_frequencies = 4 * spec.head_dim
        lines.append(
            band_line(
                "buffers",
                inverse_frequencies,
                low=0,
                high=MIB,
                basis="assumed",
                source="rotary frequencies, which headers do not show",
            )
        )
    if workload.task == "train" and (workload.precision or "").endswith("-mixed"):
        copies = 2 * sum(_matrix_elements(spec))
        lines.append(
            band_line(
                "buffers",
                copies,
                low=0,
                high=2 * spec.parameters,
                source="autocast's 16-bit copies of the matrices",
            )
        )
    return [line for line in lines if line.high_bytes]


def _matrix_elements(spec: ModelSpec) -> list[int]:
    cast = [t for t in spec.tensors if t.kind == "parameter" and t.dtype == "float32"]
    matrices = [t for t in cast if len(t.shape) >= 2]
    owned = [t for t in matrices if not t.tied_to and "embed" not in t.name]
    sizes = []
    for tensor in owned:
        count = 1
        for size in tensor.shape:
            count *= size
        sizes.append(count)
    return sizes


def trained_tensors(spec: ModelSpec, workload: Workload) -> list[Tensor]:
    """Return the parameters that a training updates: all, or the adapters."""
    own = [t for t in spec.tensors if t.kind == "parameter" and not t.tied_to]
    if workload.method not in ADAPTER_METHODS:
        return own
    return [tensor for tensor in own if ".lora_" in tensor.name]


def _training(spec: ModelSpec, workload: Workload, kind: str) -> list[Line]:
    assert workload.optimizer is not None
    trainable = trained_tensors(spec, workload)
    gradients = gradient_bytes(workload.optimizer, trainable)
    paged = paged_bytes(workload.optimizer, trainable)
    states = optimizer_bytes(workload.optimizer, trainable) - paged
    lines = [exact_line("gradients", gradients, "one per parameter, in its dtype")]
    if states:
        lines.append(exact_line("optimizer", states, optimizer_rule(workload.optimizer)[1]))
    if paged:
        lines.append(exact_line("optimizer", paged, PAGED))
    if not spec.layers:
        return lines
    engine = trainer(workload.runtime)
    line = engine.training_line(spec, workload, gradients=gradients, kind=kind)
    lines.append(compiled(line) if workload.compile else line)
    return lines
