"""MODEL and how it is loaded -> ModelSpec: the file's tensors in the layout that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.errors import MissingDependencyError, UsageError
from memplan.footprint.defaults import DEFAULT_QLORA
from memplan.hub.names import HubName, parse_name
from memplan.hub.ranges import HubRefusedError, HubUnreachableError
from memplan.models.adapters import with_adapters
from memplan.models.catalog import find_model
from memplan.models.ggml_quant import is_mix, to_ggml
from memplan.models.hub_model import hub_spec
from memplan.models.module import is_callable_name, module_spec
from memplan.models.resolve import resolve
from memplan.types import ModelSpec

__all__ = ["load_model"]


def load_model(
    argument: str,
    *,
    dtype: str | None,
    options: Mapping[str, Any],
    exact_modules: bool = False,
    trust_remote_code: bool = False,
) -> ModelSpec:
    """Read a model and apply the quantization that an option asks for.

    Args:
        argument: see `memplan.models.resolve`; where no such file is, a name of the
            catalogue, "module.path:callable", or a Hub id (`memplan.hub.names`).
        dtype: torch's name of the dtype that plain weights are loaded in; None = the model's.
        options: names and values of the command line; "quant", "runtime" and "lora_*" count here.
        exact_modules: build the model where a file's names might not be those of its modules.
        trust_remote_code: run Python code from the model's folder.

    Raises what `resolve` raises, and UsageError for a quantization that does not exist or does
    not go with the runtime.
    """
    spec = _loaded(
        argument,
        dtype=dtype,
        options=options,
        exact_modules=exact_modules,
        trust_remote_code=trust_remote_code,
    )
    return with_adapters(_kbit(spec, options), options)


def _kbit(spec: ModelSpec, options: Mapping[str, Any]) -> ModelSpec:
    """Return a model as QLoRA trains it: what is not packed is in float32.

    Source: peft.prepare_model_for_kbit_training (0.21, utils/other.py).
    """
    if options.get("task") != "train" or options.get("method") != "qlora":
        return spec
    tensors = tuple(
        replace(tensor, dtype="float32", bytes=2 * tensor.bytes)
        if tensor.dtype in ("bfloat16", "float16") and tensor.kind == "parameter"
        else tensor
        for tensor in spec.tensors
    )
    return replace(spec, tensors=tensors)


def _loaded(
    argument: str,
    *,
    dtype: str | None,
    options: Mapping[str, Any],
    exact_modules: bool,
    trust_remote_code: bool,
) -> ModelSpec:
    spec = _read(
        argument, dtype=dtype, exact_modules=exact_modules, trust_remote_code=trust_remote_code
    )
    quant = str(options.get("quant") or "none").lower()
    if quant == "none" and options.get("method") == "qlora":
        quant = DEFAULT_QLORA
    engine = options.get("runtime")
    packed = spec.weight_format.startswith("gguf")
    if packed and (quant != "none" or engine not in (None, "llama.cpp")):
        raise UsageError(
            f"{spec.name} is a GGUF file: its types are fixed, and llama.cpp runs it",
            hint="leave --quant and --runtime out, or name the original model",
        )
    if packed:
        return spec
    if quant == "none":
        return to_ggml(spec, _FLOATS.get(spec.dtype, "bf16")) if engine == "llama.cpp" else spec
    if is_mix(quant):
        if engine not in (None, "llama.cpp"):
            raise UsageError(
                f"--quant {quant} is a type of llama.cpp's", hint="add --runtime llama.cpp"
            )
        return to_ggml(spec, quant)
    if engine == "llama.cpp":
        raise UsageError(
            f"llama.cpp has no quantization {quant!r}", hint="such as q4_k_m, q8_0 or iq4_xs"
        )
    from memplan.formats.quantized import parse_scheme
    from memplan.models.quantize import quantize

    scheme = parse_scheme(quant)
    if engine == "exllama" and scheme.family != "exl3":
        raise UsageError(
            f"exllama has no quantization {quant!r}", hint="such as exl3-4bpw or exl3-3.5bpw"
        )
    return quantize(spec, None, scheme)


def _read(argument: str, **options: Any) -> ModelSpec:
    """Read a file or folder, the catalogue, the user's code or the Hub, whichever is meant."""
    if Path(argument).expanduser().exists():
        return resolve(argument, **options)
    if is_callable_name(argument):
        return module_spec(argument, dtype=options["dtype"])
    name = parse_name(argument)
    if name is None:
        listed = find_model(argument, dtype=options["dtype"])
        return listed or resolve(argument, **options)
    try:
        return hub_spec(name, **options)
    except (HubUnreachableError, HubRefusedError, MissingDependencyError) as error:
        listed = _listed(name, options["dtype"])
        if listed is None and not isinstance(error, MissingDependencyError):
            text = f"{error}; and there is no file or folder of that name here"
            raise type(error)(text, hint=error.hint) from error
        if listed is None:
            raise
        why = "refuses it" if isinstance(error, HubRefusedError) else "cannot be reached"
        return replace(listed, origin=f"catalogue's {listed.name}, since the Hub {why}")


def _listed(name: HubName, dtype: str | None) -> ModelSpec | None:
    """Return the catalogue's model of a Hub id, or of its last part where that is the same."""
    org, _, short = name.repo.partition("/")
    spec = find_model(name.repo, dtype=dtype)
    if spec is not None or name.file is not None:
        return spec
    spec = find_model(short, dtype=dtype)
    same = spec is not None and (spec.path is None or spec.path.partition("/")[0] == org)
    return spec if same else None


_FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f32"}
