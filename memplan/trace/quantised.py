"""Stand-ins for bitsandbytes' linears, which cannot run on fake tensors.

Each holds as many bytes as the real layout, and keeps and makes in its passes what the real
autograd functions do (bitsandbytes 0.50, autograd/_functions.py): neither keeps the weight in
16 bits, each makes it anew in the backward pass; the 4-bit one does not keep its input.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from memplan.formats.quantized import parse_scheme
from memplan.models.linears import module_of
from memplan.models.meta import module_tensors
from memplan.models.quantize import quantize
from memplan.types import ModelSpec

__all__ = ["adapt_packed", "pack_linears", "packed_linear", "prepare_kbit"]


def packed_linear(
    shape: tuple[int, int], size: int, bias: Any, *, compute: str, keeps_input: bool = False
) -> Any:
    """Return a stand-in for one 4-bit linear, on meta, for models that bring their own.

    Args:
        shape: of its matrix, (out, in).
        size: bytes of the packed matrix with its scales.
        bias: its bias (a Parameter), or None.
        compute: torch's name of the dtype in which it is multiplied.
        keeps_input: as bitsandbytes up to 0.42, which kept the input until the backward pass, and
            unpacked to float16 first (autograd/_functions.py, MatMul4Bit).
    """
    make = _stand_in(compute, eight=False, old=keeps_input)
    return make(shape[0], shape[1], size, bias)


def pack_linears(model: Any, quant: str, *, compute: str) -> None:
    """Replace the linears that a quantization takes by stand-ins, on meta.

    Args:
        model: an nn.Module of transformers on meta.
        quant: "nf4", "nf4-dq", "fp4" or "int8".
        compute: torch's name of the dtype in which 4-bit weights are multiplied.

    Raises UnsupportedModelError when the model has no such linear.
    """
    scheme = parse_scheme(quant)
    tensors = module_tensors(model)
    spec = ModelSpec(
        name=type(model).__name__,
        architecture=type(model).__name__,
        model_type=getattr(model.config, "model_type", None),
        source="config",
        path=None,
        tensors=tensors,
        layers=(),
        dtype=compute,
        weight_format=compute,
    )
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    make = _stand_in(compute, eight=scheme.family == "int8")
    for tensor in quantize(spec, None, scheme).tensors:
        if tensor.dtype != scheme.name:
            continue
        path = module_of(tensor.name)
        parent, _, name = path.rpartition(".")
        old = model.get_submodule(path)
        rows, columns = shapes[tensor.name]
        if not hasattr(old, "in_features"):  # Conv1D keeps its matrix the other way round
            rows, columns = columns, rows
        setattr(model.get_submodule(parent), name, make(rows, columns, tensor.bytes, old.bias))


def prepare_kbit(model: Any) -> None:
    """Freeze a model, and bring what is in 16 bits to float32.

    As peft.prepare_model_for_kbit_training does: norms, embeddings and the output matrix
    (peft 0.21, utils/other.py).
    """
    import torch

    halves = (torch.float16, torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.dtype in halves:
            parameter.data = parameter.data.to(torch.float32)


def adapt_packed(model: Any, *, target: str) -> None:
    """Let PEFT's layers over stand-ins do what its layers over bitsandbytes' linears do.

    Args:
        model: with PEFT's layers.
        target: "gpu" or "cpu"; on the host PEFT does not see that autocast is on.
    """
    from peft.tuners.lora import LoraLayer

    forward = _forward if target == "gpu" else _forward_on_host
    for module in model.modules():
        if isinstance(module, LoraLayer) and hasattr(module.get_base_layer(), "packed_bytes"):
            setattr(module, "forward", MethodType(forward, module))  # noqa: B010 - of an instance


def _forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Under autocast the adapters see the input as it is (peft 0.21, tuners/lora/bnb.py)."""
    import torch

    base = self.base_layer(x, *args, **kwargs)
    return _summed(self, x, base, converts=not torch.is_autocast_enabled("cpu"))


def _forward_on_host(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return _summed(self, x, self.base_layer(x, *args, **kwargs), converts=True)


def _summed(self: Any, x: Any, base: Any, *, converts: bool) -> Any:
    """Return base and adapters' output: cloned, and summed in the base's dtype."""
    result = base.clone()
    del base
    for name in self.active_adapters:
        first, second = self.lora_A[name], self.lora_B[name]
        values = x.to(first.weight.dtype) if converts else x
        added = second(first(self.lora_dropout[name](values))) * self.scaling[name]
        result = result + (added.to(result.dtype) if converts else added)
    return result


def _stand_in(compute: str, *, eight: bool, old: bool = False) -> Any:
    """Return the class of stand-ins for one scheme."""
    import torch

    function = _eight_bit(torch) if eight else _four_bit(torch, old=old)
    dtype = getattr(torch, compute)

    class PackedLinear(torch.nn.Linear):  # type: ignore[misc]
        """A linear whose weight is one block of bytes."""

        def __init__(self, rows: int, columns: int, size: int, bias: Any) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = columns, rows
            self.packed_bytes = size
            block = torch.empty(size, dtype=torch.uint8, device="meta")
            self.weight = torch.nn.Parameter(block, requires_grad=False)
            self.register_parameter("bias", bias)

        def forward(self, x: Any) -> Any:
            """Multiply in the compute dtype (4 bits) or by int8, and answer in the input's."""
            values = x if eight else x.to(dtype)
            bias = self.bias if self.bias is None or eight else self.bias.to(dtype)
            out = function.apply(values, self.weight, self.out_features)
            return (out if bias is None else out + bias).to(x.dtype)

    return PackedLinear


def _four_bit(torch: Any, *, old: bool) -> Any:
    def unpacked(values: Any, shape: tuple[int, int]) -> Any:
        if not old:
            return values.new_empty(shape)
        return values.new_empty(shape, dtype=torch.float16).to(values.dtype)

    class FourBit(torch.autograd.Function):  # type: ignore[misc]
        """The weight is unpacked for each pass, and gone after it; the input was once kept."""

        @staticmethod
        def forward(ctx: Any, values: Any, packed: Any, rows: int) -> Any:
            ctx.shape, ctx.packed = (rows, values.shape[-1]), packed
            ctx.kept = values if old and any(ctx.needs_input_grad) else None
            return values @ unpacked(values, ctx.shape).t()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] @ unpacked(grads[0], ctx.shape), None, None

    return FourBit


def _eight_bit(torch: Any) -> Any:
    class EightBit(torch.autograd.Function):  # type: ignore[misc]
        """The input is kept as it came, made int8 by rows; backward casts the weight."""

        @staticmethod
        def forward(ctx: Any, values: Any, packed: Any, rows: int) -> Any:
            ctx.shape, ctx.packed, ctx.values = (rows, values.shape[-1]), packed, values
            half = values.to(torch.float16)
            rounded = torch.empty_like(half, dtype=torch.int8)
            scales = torch.empty(half.shape[:-1], dtype=torch.float32)
            out = values.new_empty((*values.shape[:-1], rows))
            del half, rounded, scales
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            weight = grads[0].new_empty(ctx.shape, dtype=ctx.values.dtype)
            return grads[0].to(ctx.values.dtype) @ weight, None, None

    return EightBit
